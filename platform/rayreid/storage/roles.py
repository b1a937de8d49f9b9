"""Roles of artifacts in an experiment's graph, or among the inputs of another artifact."""


class Role(str):
    """A kind of artifact and, if an experiment has several targets, its target: `weights`, `target.market`.

    A role equals its text, which is a key in `artifact.json` and the end of a tag's name in MLflow. `Role(text)` parses
    the text, and `Role.of` composes it.
    """

    @classmethod
    def of(cls, kind: str, target: str = "") -> "Role":
        """Return the role of an artifact of this kind.

        Args:
            kind: Kind of the artifact, without a dot.
            target: Name of its target; empty if there is only one target, or if it belongs to none.
        """
        return cls(f"{kind}.{target}" if target else kind)

    @property
    def kind(self) -> str:
        """Return the role without the target."""
        return self.partition(".")[0]

    @property
    def target(self) -> str:
        """Return the target's name; empty if there is only one target, or if the artifact belongs to none."""
        return self.partition(".")[2]
