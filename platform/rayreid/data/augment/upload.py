"""Upload of many small arrays to a GPU in one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 16  # alignment of each array in the buffer, in bytes


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return the arrays on `device`, copied together; the copy to a GPU uses page-locked memory and does not block."""
    sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]
    if not any(sizes):
        return [torch.from_numpy(array).to(device) for array in arrays]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    buffer, start = host.numpy(), 0
    for array, size in zip(arrays, sizes, strict=True):
        buffer[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).ravel()
        start += size
    there = host.to(device, non_blocking=True)
    parts = there.split(sizes)
    return [
        part[: array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]
