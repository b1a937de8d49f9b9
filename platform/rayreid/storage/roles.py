"""Roles: which part an artifact plays in an experiment's graph, or among the inputs of another artifact."""


class Role(str):
    """A kind of artifact, and the target it belongs to where an experiment has several: `weights`, `target.market`.

    A role equals its text, which is a key in `artifact.json` and the end of a tag's name in MLflow: `Role(text)` reads
    it, `Role.of` composes it.
    """

    @classmethod
    def of(cls, kind: str, target: str = "") -> "Role":
        """Return the role of an artifact of this kind.

        Args:
            kind: What the artifact is for; it has no dot.
            target: Name of the target it belongs to; empty: the only one, or of no target.
        """
        return cls(f"{kind}.{target}" if target else kind)

    @property
    def kind(self) -> str:
        """Return the role without the target."""
        return self.partition(".")[0]

    @property
    def target(self) -> str:
        """Return the target's name; empty: the only one, or of no target."""
        return self.partition(".")[2]
