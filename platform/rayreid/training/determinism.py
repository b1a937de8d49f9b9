"""Bit-equal repetition on a GPU, or a refusal."""

import os

import torch

from rayreid.errors import UserError

_NO_KERNEL = "does not have a deterministic implementation"
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def require_determinism() -> None:
    """Let this process use only kernels that give the same bits again, from before its first product on a GPU on.

    On a CPU all kernels in use are of that kind.
    """
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # else cuBLAS may sum in another order on another stream
    torch.use_deterministic_algorithms(True)
    # Here, since it takes seconds in every process that imports this module.
    import torch._inductor.config as inductor

    inductor.deterministic = True  # measured times then choose no kernel that sums in another order


def refusal(error: RuntimeError) -> UserError | None:
    """What to tell the user where torch found no deterministic kernel; None: the error is another one."""
    message = str(error)
    if _NO_KERNEL not in message:
        return None
    kernel = message.partition(_NO_KERNEL)[0].split()[-1]
    return UserError(f"deterministic: true, but {kernel} has no deterministic kernel on this device; set it to false")
