"""The GPUs that Ray assigns to processes: refused if torch cannot use them, and compared between the workers."""

from collections import Counter
from collections.abc import Sequence

import torch

from rayreid.devices import is_out_of_memory
from rayreid.errors import UserError, one_line

_OTHERWISE = "rayreid doctor examines the node"


def assigned_device(gpu: bool) -> torch.device:
    """Return the device of a process that Ray assigned a GPU, or none.

    Args:
        gpu: Whether Ray assigned one, which is then the process's first.

    Raises:
        UserError: Ray assigned a GPU that torch cannot use, or whose memory is full. To compute on the CPU instead
            would take a hundred times as long, unnoticed.
    """
    if not gpu:
        return torch.device("cpu")
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:  # the latter if torch was built without CUDA
        if is_out_of_memory(error):  # the context needs some, too
            raise UserError(
                f"the GPU that Ray assigned has no memory left ({one_line(error, limit=200)}): other processes fill "
                "it; nvidia-smi shows which; wait for them or end them, or let Ray assign another GPU "
                "(CUDA_VISIBLE_DEVICES where Ray is started)"
            ) from None
        raise UserError(
            f"Ray assigned a GPU that torch {torch.__version__} cannot use ({one_line(error, limit=200)}): see whether "
            f"torch fits the driver (nvidia-smi); {_OTHERWISE}, and resources.gpu=false trains on CPUs"
        ) from None
    return torch.device("cuda", torch.cuda.current_device())


def out_of_memory(error: BaseException) -> UserError:
    """Return the error for a training step that the GPU's memory does not hold."""
    return UserError(
        f"the GPU's memory does not hold a training step ({one_line(error, limit=200)}): raise accumulate, lower the "
        "batch, or set checkpoint_activations=true; nvidia-smi shows whether others use the GPU"
    )


def check_alike(names: Sequence[str], precisions: Sequence[str]) -> str | None:
    """Compare the GPUs of all workers of a training.

    Args:
        names: Name of each worker's GPU.
        precisions: Precision that each worker would train in.

    Returns:
        A warning if the GPUs differ; None if they are alike.

    Raises:
        UserError: The workers would train in different precisions.
    """
    if len(set(precisions)) > 1:
        pairs = ", ".join(
            f"{precision} on {name}" for name, precision in sorted(set(zip(names, precisions, strict=True)))
        )
        raise UserError(
            f"the workers' GPUs differ, and so would their precisions ({pairs}): set precision to one of them"
        )
    if len(set(names)) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))
        return f"the workers' GPUs differ ({counts}): every step waits for the slowest"
    return None
