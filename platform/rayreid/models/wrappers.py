"""Wrappers around a backbone: containers in a file, and prefixes that wrapping modules put before its names."""

import argparse
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from rayreid.errors import UserError

TEACHERS = ("teacher", "method")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
CONTAINERS = (
    *TEACHERS,
    *AVERAGES,
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
)
"""Keys under which projects store the tensors, the ones to prefer first. `method` is that of our own training states;
`module` is DeepSpeed's."""

NOT_WEIGHTS = re.compile(
    r"optim|sched|scaler|^amp$|loss|criterion|student|callbacks|loops|hparams|hyper_param|^args$|config"
)
"""Entries beside the weights of a network that may hold tensors, too."""

MODULES = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Attributes under which DataParallel, DDP and averaged models, torch.compile, FSDP, activation checkpointing and
Lightning's Fabric hold the module that they wrap; no network of the known families has a part of such a name."""

FOLLOWERS = re.compile(r"teacher|(^|_)ema(_|$)|averag|(^|_)swa(_|$)")
"""Names of a network that follows a trained one; where a file holds both, projects evaluate the follower."""

_FIRST_BLOCK = re.compile(
    r"^((?:.*?\.)??)(?:(?:layers|stages)\.0\.blocks\.0\.norm1\.weight|blocks\.0\.(?:0\.)?norm1\.weight"
    r"|layer4\.0\.conv1\.weight|4\.0\.conv1\.weight|transformer\.resblocks\.0\.ln_1\.weight)$"
)
_STAGE = re.compile(r"(?:layers|stages)\.\d+\.$")


def opened(content: Any, source: str) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return the tensors in a file's content, whatever containers they lie in.

    Args:
        content: The content of the file.
        source: The file, for messages.

    Returns:
        Name → tensor, without the names of wrapping modules; the container's key ("" if there is none); and the facts
        that the file states: `arch`, `epoch`, `img_size`, and `taken` if it also holds other networks.

    Raises:
        UserError: The file holds no tensors, or several networks between which nothing decides.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds a {type(content).__name__}, not a state dict")
    keys: list[str] = []
    choices: list[str] = []
    facts: dict[str, Any] = {}
    inner: Mapping[Any, Any] = content
    while key := _container(inner, source):
        facts |= _facts(inner)
        beside = [other for other in _networks(inner) if other != key and not NOT_WEIGHTS.search(other)]
        choices += [f"{key} (beside {', '.join(beside)})"] if beside else []
        keys.append(key)
        inner = inner[key]
    state = {name: value for name, value in inner.items() if isinstance(value, Tensor) and isinstance(name, str)}
    if not state:
        raise UserError(f"{source} holds no weights: its entries are {', '.join(map(str, list(inner)[:5])) or 'none'}")
    container = next((key for key in keys if key in TEACHERS), keys[-1] if keys else "")
    return without_modules(state), container, facts | ({"taken": ", ".join(choices)} if choices else {})


def _container(content: Mapping[Any, Any], source: str) -> str:
    """Return the key of the container to look into next; "" if the tensors lie here."""
    holding = _networks(content)
    known = next((key for key in CONTAINERS if key in holding), "")
    if known or any(_is_array(value) for value in content.values()):
        return known
    others = [key for key in holding if not NOT_WEIGHTS.search(key)]
    followers = [key for key in others if FOLLOWERS.search(key)]
    if len(others) > 1 and len(followers) != 1:
        raise UserError(f"{source} holds several networks ({', '.join(others)}): save the tensors of one of them alone")
    return next(iter(followers if len(others) > 1 else others), "")


def _networks(content: Mapping[Any, Any]) -> list[str]:
    """Return the keys of networks: mappings with several arrays; where there is none, those with any tensor.

    A mapping with a lone tensor, such as the number of updates of an average, is no network beside one.
    """
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    return [key for key in named if _holds(named[key], 2)] or [key for key in named if _holds(named[key], 0)]


def _holds(value: Any, least: int) -> bool:
    """Return whether this is a mapping with that number of arrays (0: any tensor), or with such a mapping in it."""
    if not isinstance(value, Mapping):
        return False
    parts = [part for name, part in value.items() if isinstance(name, str)]
    arrays = sum(map(_is_array, parts))
    own = arrays >= least if least else any(isinstance(part, Tensor) for part in parts)
    return own or any(_holds(part, least) for part in parts)


def _is_array(value: Any) -> bool:
    """Return whether this is a tensor of more than one number; a lone number is a figure about a training."""
    return isinstance(value, Tensor) and value.numel() > 1


def without_modules(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names without the parts of `MODULES`, wherever they stand in a name."""
    names = {name: ".".join(part for part in name.split(".") if part not in MODULES) for name in state}
    if len(set(names.values())) < len(names):
        return dict(state)  # a wrapped network beside a bare one: the prefixes tell them apart
    return {names[name]: value for name, value in state.items()}


def roots(state: Iterable[str]) -> set[str]:
    """Return the prefixes under which networks lie, by the name of a layer that each kind has."""
    found = (match[1] for name in state if (match := _FIRST_BLOCK.match(name)))
    return {root for root in found if not _STAGE.search(root)}


def peeled(state: Mapping[str, Tensor], source: str = "the file") -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Take the outermost prefix off the names of the network that a model holds.

    Args:
        state: Name → tensor, with at least one network (`roots`) under a prefix.
        source: The file, for messages.

    Returns:
        The prefix; name without it → tensor; and the names outside it → the reason for leaving them out.

    Raises:
        UserError: The model holds several networks between which nothing decides.
    """
    found = roots(state)
    outer = {root.partition(".")[0] for root in found}
    followers = {part for part in outer if FOLLOWERS.search(part)}
    if len(outer) > 1 and len(followers) != 1:
        raise UserError(
            f"{source} holds several networks ({', '.join(sorted(found))}*): save the tensors of one of them alone"
        )
    [first] = followers if len(outer) > 1 else outer
    prefix = first + "."
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    reason = f"outside of {prefix}*, which holds the backbone"
    return prefix, inner, {name: reason for name in state if not name.startswith(prefix)}


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    settings = vars(content["args"]) if isinstance(content.get("args"), argparse.Namespace) else {}
    arch, epoch = content.get("arch", settings.get("arch")), content.get("epoch")
    size = (settings.get("height"), settings.get("width"))
    return {
        **({"arch": arch} if isinstance(arch, str) else {}),
        **({"epoch": epoch} if isinstance(epoch, int) else {}),
        **({"img_size": size} if all(isinstance(side, int) for side in size) else {}),
    }
