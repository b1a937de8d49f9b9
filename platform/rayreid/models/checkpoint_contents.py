"""A checkpoint file before and after its backbone is found: its content, and the tensors under the backbone's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Contents:
    """A checkpoint file taken apart.

    Attributes:
        state: Name → tensor, without the `module.` of data-parallel training.
        container: The key under which the tensors were stored (`teacher`, `method`, `state_dict`, `model`), or "".
        facts: Facts that the file states about itself: `arch`, `epoch`, `img_size` (height, width).
    """

    state: Mapping[str, Tensor]
    container: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def has(self, *prefixes: str) -> bool:
        """Return whether a name begins with one of these prefixes."""
        return any(name.startswith(prefixes) for name in self.state)

    def mentions(self, part: str) -> bool:
        """Return whether a name contains this part."""
        return any(part in name for name in self.state)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file, under the backbone's own names.

    Attributes:
        format: Name of the format in `FORMATS`, or "rayreid" (ours).
        state: Name → tensor.
        ignored: Name in the file that is not part of a backbone → the reason for leaving it out.
        header: Our header as JSON text, "" for files of other origin.
        facts: Known facts beyond the tensors: `arch`, `epoch`, `img_size` (height, width), `num_heads`, `mean`, `std`;
            unknown ones are absent.
        differs: Description of parts of the file's network that no backbone here has; "" for most files.
    """

    format: str
    state: dict[str, Tensor]
    ignored: dict[str, str] = field(default_factory=dict)
    header: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    differs: str = ""

    def facts_of_shape(self) -> dict[str, Any]:
        """Return the known arguments of `build_backbone` that the tensors do not reveal."""
        return {key: self.facts[key] for key in ("img_size", "num_heads") if key in self.facts}
