"""Names of a backbone's tensors in published files, and their translation to those of timm's classes."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

import torch
from torch import Tensor

State = dict[str, Tensor]
Left = dict[str, str]
"""Name in the file that is left out → the reason."""

COMPUTED = (".relative_position_index", ".attn_mask", "rope_embed.periods", ".bias_mask")
PRETRAINING = {
    "mask_token": "mask token of the pre-training",
    "masked_embed": "mask token of the pre-training",
    "decoder_": "decoder of the pre-training",
    "local_cls_norm.": "norm of the pre-training's small crops",
}
SIE = "table of cameras or views (SIE), left out: the features are those without it"


def timm_names(state: Mapping[str, Tensor]) -> tuple[State, Left]:
    """Return a backbone's tensors under timm's names, and what was left out of it.

    Args:
        state: Name → tensor, without the prefix under which the backbone lies in its file.
    """
    left = {name: reason for name in state if (reason := _spare(name))}
    kept = {name: value for name, value in state.items() if name not in left}
    for translate in (_chunked_blocks, _authors_swin, _solider, _part_tokens, _registers, _swiglu, _dinov3):
        kept, more = translate(kept)
        left |= more
    return kept, left


def _spare(name: str) -> str:
    if name.endswith(COMPUTED):
        return "computed, not learnt"
    if name == "sie_embed":
        return SIE
    return next((reason for start, reason in PRETRAINING.items() if name.startswith(start)), "")


def _renamed(state: State, *patterns: tuple[str, str]) -> State:
    """Return the tensors with every match of the patterns in their names replaced, one pattern after the other."""
    names = {name: name for name in state}
    for pattern, new in patterns:
        names = {name: re.sub(pattern, new, now) for name, now in names.items()}
    return {names[name]: value for name, value in state.items()}


def _chunked_blocks(state: State) -> tuple[State, Left]:
    """Number blocks that lie in chunks (`blocks.0.0.*`, DINOv2 and DINOv3 trained with FSDP) through."""
    places = sorted({(int(at[1]), int(at[2])) for name in state if (at := re.match(r"blocks\.(\d+)\.(\d+)\.", name))})
    for number, (chunk, place) in enumerate(places):
        state = _renamed(state, (rf"^blocks\.{chunk}\.{place}\.", f"numbered.{number}."))
    return _renamed(state, (r"^numbered\.", "blocks.")), {}


def _authors_swin(state: State) -> tuple[State, Left]:
    """Move the downsampling layers of a Swin: its authors end a stage with them, timm begins the next one."""
    if not any(name.startswith("layers.0.downsample.") for name in state):
        return state, {}
    step = re.compile(r"^layers\.(\d+)\.downsample\.")
    return {step.sub(lambda at: f"layers.{int(at[1]) + 1}.downsample.", name): state[name] for name in state}, {}


def _solider(state: State) -> tuple[State, Left]:
    """Translate the Swin of SOLIDER, which has the names and the merging order of OpenMMLab's."""
    if not any(name.startswith("stages.0.blocks.0.attn.w_msa.") for name in state):
        return state, {}
    stages = len({name.split(".")[1] for name in state if name.startswith("stages.")})
    state = _renamed(
        state,
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (rf"^norm{stages - 1}\.", "norm."),
        (r"^stages\.", "layers."),
    )
    unread = re.compile(rf"norm\d\.|semantic_embed_[wb]\.{stages - 1}\.")
    left = {name: "not read by the last map, which the feature comes from" for name in state if unread.match(name)}
    kept = {name: _merged(name, value) for name, value in state.items() if name not in left}
    return _authors_swin(kept)[0], left


def _merged(name: str, value: Tensor) -> Tensor:
    """Return a downsampling layer's tensor with its four merged patches in timm's order.

    `Unfold` orders the input by channel, then row and column of the patch; timm by column, row, then channel.
    """
    if not re.search(r"\.downsample\.(norm|reduction)\.", name):
        return value
    parts = value.unflatten(-1, (-1, 2, 2))  # (…, C, row, column)
    return torch.einsum("...crk->...krc", parts).flatten(-3).contiguous()


def _part_tokens(state: State) -> tuple[State, Left]:
    """Store PASS's part tokens as timm's registers; their positions, and the class token's, are added to them."""
    parts = list(takewhile(lambda part: f"part_token{part}" in state, range(1, 10)))
    if not parts or "cls_pos" not in state:
        return state, {}
    tokens = [state[f"part_token{part}"] + state[f"part{part}_pos"] for part in parts]
    folded = {"cls_pos", *(f"part_token{part}" for part in parts), *(f"part{part}_pos" for part in parts)}
    kept = {name: value for name, value in state.items() if name not in folded}
    kept["cls_token"] = state["cls_token"] + state["cls_pos"]
    return kept | {"reg_token": torch.cat(tokens, dim=1)}, {}


def _registers(state: State) -> tuple[State, Left]:
    """Store registers as timm does: the class token's position is added to it, and only patches keep theirs."""
    table = state.get("pos_embed") if "register_tokens" in state else None
    state = _renamed(state, (r"^(register|storage)_tokens$", "reg_token"))
    if table is None:
        return state, {}
    return state | {"cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}, {}


def _swiglu(state: State) -> tuple[State, Left]:
    """Rename the layers of DINOv2's fused SwiGLU."""
    return _renamed(state, (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")), {}


def _dinov3(state: State) -> tuple[State, Left]:
    """Translate DINOv3 to timm's Eva: no positions, LayerScale by another name, biases of queries and values apart."""
    if "reg_token" not in state or "pos_embed" in state:
        return state, {}
    state = _renamed(
        state,
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    )
    biases = [name for name in state if name.endswith(".attn.qkv.bias")]
    parts = dict(_query_and_value(state, biases))
    kept = {name: value for name, value in state.items() if name not in biases}
    if not any(bool(value.any()) for value in parts.values()):
        return kept, dict.fromkeys(biases, "zero everywhere (distilled models of DINOv3)")
    return kept | parts, {}


def _query_and_value(state: State, biases: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the biases of queries and values; that of keys is masked, so it counts as zero."""
    for name in biases:
        query, _, value = state[name].chunk(3)
        yield name.replace("qkv.bias", "q_bias"), query
        yield name.replace("qkv.bias", "v_bias"), value
