"""What the card can do at best."""

import argparse
from collections.abc import Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_rows.clock import seconds_each
from gpu_rows.part import Part, Values


@cache
def matrix_peak(device: str) -> float:
    """TFLOP/s of bfloat16 products of square matrices, measured once in a process."""
    return _products(device, torch.bfloat16, 20)


def measure(args: argparse.Namespace) -> Iterator[Part]:
    """bf16 and float32 products of square matrices, and copies, counting bytes read and written."""
    yield "bf16", lambda: {"bf16_TFLOPs": matrix_peak(args.device)}
    yield "fp32", lambda: {"fp32_TFLOPs": _products(args.device, torch.float32, 5)}
    yield "copy", partial(_copy, args)
    yield "upload", partial(_upload, args)


def _size(device: str) -> int:
    return 256 if device == "cpu" else 8192


def _products(device: str, kind: torch.dtype, repeats: int) -> float:
    size = _size(device)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return 2 * size**3 / seconds_each(lambda: a @ b, device, repeats) / 1e12


def _copy(args: argparse.Namespace) -> Values:
    source = torch.randint(0, 255, (_size(args.device) ** 2 * 64,), dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    return {"copy_TBs": 2 * source.numel() / seconds_each(lambda: target.copy_(source), args.device, 20) / 1e12}


def _upload(args: argparse.Namespace) -> Values:
    host = torch.empty(_size(args.device) ** 2, dtype=torch.uint8, pin_memory=not args.toy)
    target = torch.empty(len(host), dtype=torch.uint8, device=args.device)
    seconds = seconds_each(lambda: target.copy_(host, non_blocking=True), args.device, 20)
    return {"upload_GBs": host.numel() / seconds / 1e9}


def attention(args: argparse.Namespace) -> Iterator[Part]:
    """Milliseconds of attention forward and backward over the crops of a batch of 256, by torch's kernels."""
    for name, n, N in (("global", 512, 129), ("local", 2048, 33)):
        n = 4 if args.toy else n
        qkv = torch.randn(n, N, 3, 6, 64, device=args.device, dtype=torch.bfloat16, requires_grad=True)
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            label = f"{name}_{backend.name[:5].lower()}"
            yield label, partial(_attention, args.device, qkv, backend, label)


def _attention(device: str, qkv: torch.Tensor, backend: SDPBackend, label: str) -> Values:
    def both() -> None:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        out.backward(out)

    try:
        return {f"{label}_ms": 1e3 * seconds_each(both, device, 10)}
    except RuntimeError as error:  # torch has no such kernel for this device
        return {f"{label}_ms": str(error)[:60]}
