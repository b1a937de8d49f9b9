"""One pass of a ViT's blocks over crops of several sizes, without padding and without outputs that are never read."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from rayreid.training.compilation import as_here, compilable

FEW_TOKENS = 64
SMALL_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Shape = tuple[int, int]
"""Shape of the crops of one size: (number of crops n, number of tokens per crop N)."""


def class_tokens(blocks: nn.Sequential, tokens: Sequence[Tensor], checkpointed: bool = False) -> Tensor:
    """Run timm's `Block`s over the tokens of crops, and return the class tokens (sum of n, D).

    Norms, projections and MLPs process the tokens of all sizes as rows of one matrix; only attention, which mixes the
    tokens of a crop, runs size by size. After its keys and values, the last block computes only the class token,
    because its other outputs are never read. The result equals that of running block by block and size by size.

    Args:
        blocks: At least one block.
        tokens: A tensor (n, N, D) per size, with the class token first.
        checkpointed: Whether to keep only each block's input for the backward pass, which then computes the block
            again.
    """
    shapes, x_TD = _joined(tokens)
    kept = _kept(blocks, sum(n for n, _ in shapes), x_TD)
    *body, last = zip(blocks, kept, strict=True)
    for block, keep in body:
        x_TD = _run(block, x_TD, shapes, keep, checkpointed)
    block, keep = last
    return _last(block, x_TD, shapes, keep)


def first_tokens(blocks: nn.Sequential, tokens: Sequence[Tensor], count: int, checkpointed: bool = False) -> Tensor:
    """Run timm's `Block`s over the tokens of crops, and return the first tokens of each crop (sum of n, count, D).

    Args:
        blocks: The blocks.
        tokens: A tensor (n, N, D) per size.
        count: How many tokens to return.
        checkpointed: See `class_tokens`.
    """
    shapes, x_TD = _joined(tokens)
    kept = _kept(blocks, sum(n for n, _ in shapes), x_TD)
    for block, keep in zip(blocks, kept, strict=True):
        x_TD = _run(block, x_TD, shapes, keep, checkpointed)
    return torch.cat([part[:, :count] for part in _per_size(x_TD, shapes)])


def _joined(tokens: Sequence[Tensor]) -> tuple[tuple[Shape, ...], Tensor]:
    """Return the shapes of the crops, and the tokens of all of them as rows (T, D)."""
    return tuple((x.shape[0], x.shape[1]) for x in tokens), torch.cat([x.flatten(0, 1) for x in tokens])


def _run(block: Any, x_TD: Tensor, shapes: Sequence[Shape], keep: Tensor | None, checkpointed: bool) -> Tensor:
    """Return all tokens (T, D) after one block, which the backward pass computes again if `checkpointed`."""
    if not (checkpointed and torch.is_grad_enabled()):
        return _block(block, x_TD, shapes, keep)
    out: Tensor = checkpoint(as_here(_block), block, x_TD, shapes, keep, use_reentrant=False, preserve_rng_state=False)
    return out


def _kept(blocks: nn.Sequential, crops: int, x: Tensor) -> list[Tensor | None]:
    """Return the factors of stochastic depth for each block's two branches, (2, crops) per block: 0, or 1 / (1 - rate).

    They are drawn before the blocks run, so that the rates are not constants of the compiled code. All are None if
    nothing is dropped; a block of rate 0 among others has ones, so that one compiled function serves all.
    """
    rates = [_rates(block) for block in blocks]
    if not any(map(any, rates)):
        return [None] * len(rates)
    return [torch.stack([_mask(rate, crops, x) for rate in pair]) for pair in rates]


def _rates(block: Any) -> tuple[float, float]:
    paths = (block.drop_path1, block.drop_path2)
    first, second = (getattr(path, "drop_prob", 0.0) if path.training else 0.0 for path in paths)
    return first, second


def _mask(rate: float, crops: int, x: Tensor) -> Tensor:
    return x.new_empty(crops).bernoulli_(1 - rate).div_(1 - rate) if rate else x.new_ones(crops)


@compilable
def _block(block: Any, x_TD: Tensor, shapes: Sequence[Shape], keep: Tensor | None) -> Tensor:
    """Return all tokens (T, D) after one block."""
    x_TD = _residual(x_TD, _attend(block, x_TD, shapes), keep, 0, shapes)
    return _think(block, x_TD, keep, shapes)


def _attend(block: Any, x_TD: Tensor, shapes: Sequence[Shape]) -> Tensor:
    attention = block.attn
    parts = _per_size(attention.qkv(block.norm1(x_TD)), shapes)
    heads = (part.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4) for part in parts)
    mixed: Tensor = block.ls1(attention.proj(_rows(_mix(*qkv.unbind(0)) for qkv in heads)))
    return mixed


def _think(block: Any, x: Tensor, keep: Tensor | None, shapes: Sequence[Shape]) -> Tensor:
    return _residual(x, block.ls2(block.mlp(block.norm2(x))), keep, 1, shapes)


@compilable
def _last(block: Any, x_TD: Tensor, shapes: Sequence[Shape], keep: Tensor | None) -> Tensor:
    """Return the class tokens (sum of n, D) after the last block."""
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
    x = _residual(_first(x_TD, shapes), block.ls1(attention.proj(_rows(mixed))), keep, 0, crops)
    return _think(block, x, keep, crops)


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled dot-product attention, (n, heads, N, d) each.

    For bfloat16 on a CPU it uses two plain products, because the fused kernel's backward pass takes four times as long
    (measured at 129 and 33 tokens). On a GPU, the kernel that torch would choose is the slower one for few tokens: at
    33 tokens it takes 1.3 ms forward and backward, the other 1.1 ms (2,048 crops, H200).
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    if q.is_cuda and k.shape[2] <= FEW_TOKENS:
        with sdpa_kernel(SMALL_KERNELS):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _residual(x: Tensor, branch: Tensor, keep: Tensor | None, which: int, shapes: Sequence[Shape]) -> Tensor:
    """Return x + branch, with the branch dropped for a share of the crops and else scaled up (stochastic depth)."""
    if keep is None:
        return x + branch
    per_size = keep[which].split([n for n, _ in shapes])
    rows = [part.unsqueeze(1).expand(-1, N).flatten() for part, (_, N) in zip(per_size, shapes, strict=True)]
    return torch.addcmul(x, branch.to(x.dtype), torch.cat(rows).unsqueeze(1))


def _per_size(rows: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Return rows (T, C) as a tensor (n, N, C) per size."""
    parts = rows.split([n * N for n, N in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _rows(heads: Iterable[Tensor]) -> Tensor:
    """Return a tensor (n, heads, N, d) per size as rows (T, heads · d)."""
    return torch.cat([part.transpose(1, 2).flatten(2).flatten(0, 1) for part in heads])


def _first(rows: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Return the first token of every crop, (sum of n, D), from rows (T, D)."""
    return torch.cat([part[:, 0] for part in _per_size(rows, shapes)])
