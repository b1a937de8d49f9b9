"""Translation of a checkpoint of other origin into tensors under the backbone's own names."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rayreid.errors import UserError, one_line
from rayreid.models.checkpoint_contents import Checkpoint, Contents
from rayreid.models.formats import FORMATS, HEADS, Format
from rayreid.models.layouts import timm_names
from rayreid.models.wrappers import peeled, roots

# Parts that a network may have and the backbones here lack: its tensors would otherwise load into a different network.
DIFFERENCES = {
    "part_token": "its part tokens have no positions of their own (PASS with SIE), which no network here computes",
    "dist_token": "a distillation token beside the class token (distilled DeiT) has no place in this ViT",
    "fc_norm.": "the mean over patches takes the place of the class token in this file",
    "NL_": "non-local blocks between the stages (fast-reid's NL) have no place in this ResNet",
    ".se.": "squeeze-and-excitation in every block (fast-reid's SE) has no place in this ResNet",
}


def adapt(contents: Contents, source: str = "the file") -> Checkpoint:
    """Find the backbone in the content of a file of other origin, and rename its tensors to the backbone's names.

    Prefixes of an outer model are taken off until a known format shows. Names that no rule explains are kept, so that
    they are refused by name later.

    Args:
        contents: The content of the file.
        source: The file, for messages.

    Raises:
        UserError: The file holds several networks between which nothing decides, or tensors of a family are missing or
            have other shapes than that family's.
    """
    outside: dict[str, str] = {}
    form = _recognised(contents)
    while _lies_deeper(contents, form):
        prefix, inner, left = peeled(contents.state, source)
        outside |= left
        contents = replace(contents, state=inner, facts={**contents.facts, **_choice(prefix, left)})
        form = _recognised(contents)
    try:
        return _translated(contents, form, outside)
    except (LookupError, ValueError, RuntimeError, TypeError) as error:
        fault = f"{error.args[0]} is missing" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{source} is a damaged or incomplete file: by its names {form.title}, but {fault}") from error


def _translated(contents: Contents, form: Format, outside: Mapping[str, str]) -> Checkpoint:
    """Return the backbone's tensors under its own names.

    Args:
        contents: The content of the file.
        form: Its format.
        outside: Name that was left out before → the reason.
    """
    tensors, ignored = form.rearrange(contents.state) if form.rearrange else (dict(contents.state), {})
    found: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, value in tensors.items():
        inner_name = name.removeprefix(form.inside)
        reason = _reason(name, form.beside) or _reason(inner_name, HEADS)
        if reason is None and inner_name.startswith("fc_norm.") and form.inside + "norm.weight" in tensors:
            reason = "norm of the head"
        if reason is None and form.alone and inner_name == name:
            reason = f"outside of {form.inside}*, which holds the backbone"
        if reason is None:
            found[inner_name], names[inner_name] = value, name
        else:
            ignored[name] = reason
    state, spare = timm_names(found)
    spare = {names.get(name, name): reason for name, reason in spare.items()}
    differs = [form.differs] if form.differs else []
    differs += [words for part, words in DIFFERENCES.items() if any(part in name for name in state)]
    facts = {**contents.facts, **_normalisation(contents), **_heads(form, state)}
    return Checkpoint(form.name, state, {**outside, **ignored, **spare}, facts=facts, differs="; ".join(differs))


def _recognised(contents: Contents) -> Format:
    return next(form for form in FORMATS if form.recognise(contents))


def _choice(prefix: str, left: Iterable[str]) -> dict[str, str]:
    """Return the fact that the network under a prefix was taken, if there are others among the names left out."""
    others = sorted({root.partition(".")[0] for root in roots(left)})
    return {"taken": f"{prefix}* (beside {', '.join(f'{other}.*' for other in others)})"} if others else {}


def _lies_deeper(contents: Contents, form: Format) -> bool:
    """Return whether the network lies under a prefix that the format does not explain."""
    found = roots(contents.state)
    return bool(found) and "" not in found and form.inside not in found


def _normalisation(contents: Contents) -> dict[str, Any]:
    """Return mean and std for images in [0, 1], which fast-reid stores for images in [0, 255]."""
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    if not all(name in contents.state for name in names.values()):
        return {}
    return {fact: [float(value) / 255 for value in contents.state[name].flatten()] for fact, name in names.items()}


def _heads(form: Format, state: Mapping[str, Tensor]) -> dict[str, int]:
    token = state.get("cls_token")
    width = token.shape[-1] if token is not None and token.dim() else 0
    return {"num_heads": form.heads[width]} if width in form.heads else {}


def _reason(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((reason for prefix, reason in prefixes.items() if name.startswith(prefix)), None)
