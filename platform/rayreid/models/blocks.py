"""A ViT's blocks over crops of several sizes: one pass without padding, and no token computed that nothing reads."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int]
"""Crops of one size: (number of crops n, tokens of each N)."""


def class_tokens(blocks: nn.Sequential, tokens: Sequence[Tensor]) -> Tensor:
    """Run timm's `Block`s over the tokens of crops, a tensor (n, N, D) per size: class tokens (sum of n, D).

    Norms, projections and MLPs take the tokens of all sizes as rows of one matrix; only attention, which mixes the
    tokens of a crop, goes size by size. After its keys and values, the last block computes the class token alone:
    nothing reads what its other tokens would become. The result is that of block by block and size by size.
    """
    shapes = [(x.shape[0], x.shape[1]) for x in tokens]
    x_TD = torch.cat([x.flatten(0, 1) for x in tokens])
    *body, last = blocks
    for block in body:
        x_TD = _residual(x_TD, _attend(block, x_TD, shapes), block.drop_path1, shapes)
        x_TD = _think(block, x_TD, shapes)
    return _last(last, x_TD, shapes)


def _attend(block: Any, x_TD: Tensor, shapes: Sequence[Shape]) -> Tensor:
    attention = block.attn
    parts = _per_size(attention.qkv(block.norm1(x_TD)), shapes)
    heads = (part.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4) for part in parts)
    mixed: Tensor = attention.proj(_rows(_mix(*qkv.unbind(0)) for qkv in heads))
    return mixed


def _think(block: Any, x: Tensor, shapes: Sequence[Shape]) -> Tensor:
    return _residual(x, block.mlp(block.norm2(x)), block.drop_path2, shapes)


def _last(block: Any, x_TD: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """The class tokens (sum of n, D) after the last block."""
    attention, D = block.attn, x_TD.shape[1]
    (to_q, to_kv), (bias_q, bias_kv) = (whole.split((D, 2 * D)) for whole in (attention.qkv.weight, attention.qkv.bias))
    normed = block.norm1(x_TD)
    parts = _per_size(F.linear(normed, to_kv, bias_kv), shapes)
    queries = F.linear(_first(normed, shapes), to_q, bias_q).unflatten(1, (1, attention.num_heads, -1))
    mixed = []
    for q, part in zip(queries.split([n for n, _ in shapes]), parts, strict=True):
        k, v = part.unflatten(2, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed.append(_mix(q.transpose(1, 2), k, v))
    crops = [(n, 1) for n, _ in shapes]
    x = _residual(_first(x_TD, shapes), attention.proj(_rows(mixed)), block.drop_path1, crops)
    return _think(block, x, crops)


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (n, heads, N, d) each.

    In two plain products for bfloat16 on a CPU, where the fused kernel's backward pass takes four times theirs
    (measured at 129 and 33 tokens).
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _residual(x: Tensor, branch: Tensor, drop_path: Any, shapes: Sequence[Shape]) -> Tensor:
    """x + branch, the branch dropped for a share of the crops and else scaled up (stochastic depth)."""
    rate = getattr(drop_path, "drop_prob", 0.0)
    if not rate or not drop_path.training:
        return x + branch
    keep = x.new_empty(sum(n for n, _ in shapes)).bernoulli_(1 - rate).div_(1 - rate)
    per_size = keep.split([n for n, _ in shapes])
    rows = [part.repeat_interleave(N) for part, (_, N) in zip(per_size, shapes, strict=True)]
    return torch.addcmul(x, branch.to(x.dtype), torch.cat(rows).unsqueeze(1))


def _per_size(rows: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """(T, C) to a tensor (n, N, C) per size."""
    parts = rows.split([n * N for n, N in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _rows(heads: Iterable[Tensor]) -> Tensor:
    """A tensor (n, heads, N, d) per size to (T, heads · d)."""
    return torch.cat([part.transpose(1, 2).flatten(2).flatten(0, 1) for part in heads])


def _first(rows: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """(T, D) to the first token of every crop, (sum of n, D)."""
    return torch.cat([part[:, 0] for part in _per_size(rows, shapes)])
