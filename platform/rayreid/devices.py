"""What a device can do, and how exactly it computes."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch


def missing_for_code(device: torch.device) -> str:
    """Return what the generation of code for a device lacks ("a C compiler …"); empty if nothing."""
    if device.type != "cuda":  # Inductor generates C++
        name = os.environ.get("CXX", "g++")
        return "" if shutil.which(name) else f"a C++ compiler ({name})"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or newer"
    # Triton builds the launchers of its kernels.
    found = any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang"))
    return "" if found else "a C compiler (gcc or clang)"


@cache
def runs_triton(device: torch.device) -> bool:
    """Return whether Triton kernels run on a device. A GPU on which they do not is named in the log, once."""
    if device.type != "cuda":
        return False
    missing = missing_for_code(device)
    if missing:
        logging.getLogger("rayreid").warning(
            "images are cropped and resized by torch's own operations, which takes several times as long: the faster "
            "kernels need %s",
            missing,
        )
    return not missing


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU has no memory left.

    Only torch's own allocator raises `torch.OutOfMemoryError`; CUDA, cuBLAS and Triton say it in a RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in ("out of memory", "ALLOC_FAILED"))


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one: Triton's kernels and CUDA's events are those of the current device."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to 11 bits (TF32), or not; some containers always allow it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
