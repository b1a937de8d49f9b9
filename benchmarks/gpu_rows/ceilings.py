"""What the card can do at best."""

import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_rows.clock import seconds_each


def measure(args: argparse.Namespace) -> dict[str, float | str]:
    """bf16 and TF32 products of square matrices, and a copy, counting bytes read and written."""
    size = 256 if args.toy else 8192
    values: dict[str, float | str] = {}
    a, b = (torch.randn(size, size, device=args.device) for _ in range(2))
    half = a.bfloat16(), b.bfloat16()
    values["bf16_TFLOPs"] = 2 * size**3 / seconds_each(lambda: half[0] @ half[1], args.device, 20) / 1e12
    values["fp32_TFLOPs"] = 2 * size**3 / seconds_each(lambda: a @ b, args.device, 5) / 1e12
    source = torch.randint(0, 255, (size * size * 64,), dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    values["copy_TBs"] = 2 * source.numel() / seconds_each(lambda: target.copy_(source), args.device, 20) / 1e12
    host = torch.empty(size * size, dtype=torch.uint8, pin_memory=not args.toy)
    upload = seconds_each(lambda: target[: size * size].copy_(host, non_blocking=True), args.device, 20)
    values["upload_GBs"] = size * size / upload / 1e9
    return values


def attention(args: argparse.Namespace) -> dict[str, float | str]:
    """Milliseconds of attention forward and backward over the crops of a batch of 256, by torch's kernels."""
    values: dict[str, float | str] = {}
    for name, n, N in (("global", 512, 129), ("local", 2048, 33)):
        n = 4 if args.toy else n
        qkv = torch.randn(n, N, 3, 6, 64, device=args.device, dtype=torch.bfloat16, requires_grad=True)
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):

            def both(qkv: torch.Tensor = qkv, backend: SDPBackend = backend) -> None:
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
                out.backward(out)

            try:
                values[f"{name}_{backend.name[:5].lower()}"] = 1e3 * seconds_each(both, args.device, 10)
            except RuntimeError as error:
                values[f"{name}_{backend.name[:5].lower()}"] = str(error)[:60]
    return values
