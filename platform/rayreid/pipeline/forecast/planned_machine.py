"""The machine that a forecast is for: this one, or one that the user names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rayreid.config import Resources
from rayreid.errors import UserError
from rayreid.execution.machine import machine_name, usable_cpus
from rayreid.execution.resources import Share, inference_share, share_on, trainings_at_once


@dataclass(frozen=True)
class PlannedMachine:
    """A machine, or a cluster taken as one.

    Attributes:
        cpus, gpus: Numbers of CPU cores and GPUs.
        name: Name of the GPU, or of the CPU if there is no GPU, as artifacts record it; "" if it is not this machine.
    """

    cpus: int
    gpus: int
    name: str = ""

    @property
    def device(self) -> str:
        """Return the kind of device on which trainings run: `cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"

    @property
    def nodes(self) -> list[Mapping[str, float]]:
        """Return its resources as those of one node of Ray."""
        return [{"CPU": float(self.cpus), **({"GPU": float(self.gpus)} if self.gpus else {})}]

    def training(self, resources: Resources) -> Share:
        """Return the share of a training.

        Raises:
            UserError: The machine cannot hold the workers that the configuration asks for.
        """
        return share_on(resources, self.nodes)

    def inference(self) -> Share:
        """Return the share of scoring and evaluation."""
        return inference_share(self.nodes)

    def at_once(self, resources: Resources) -> int:
        """Return how many trainings of a sweep run side by side; see `training` for the error."""
        return trainings_at_once(self.training(resources), self.nodes)

    def __str__(self) -> str:
        cores = f"{self.cpus} CPU core{'s' if self.cpus > 1 else ''}"
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} and {cores}" if self.gpus else cores


def machine_here(gpus: int | None = None, cpus: int | None = None) -> PlannedMachine:
    """Return this machine, with other numbers of GPUs and CPU cores if they are given.

    CPU cores count as Ray is started with them: those that the process may use, and that Slurm allots.

    GPUs count that torch sees here, hence those of `CUDA_VISIBLE_DEVICES`. Without `cpus`, machines with more GPUs than
    this one are taken to have 16 cores per GPU, as the machine in docs/performance.md had.

    Raises:
        UserError: A number is not one that a machine can have.
    """
    if gpus is not None and gpus < 0:
        raise UserError(f"--gpus {gpus}: give 0 or more")
    if cpus is not None and cpus < 1:
        raise UserError(f"--cpus {cpus}: give 1 or more")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = there if gpus is None else gpus
    cores = usable_cpus() or os.cpu_count() or 1
    if cpus is not None:
        cores = cpus
    elif wanted > there:
        cores = max(cores, 16 * wanted)
    here = wanted == 0 or wanted <= there
    device = torch.device("cuda" if wanted else "cpu")
    return PlannedMachine(cores, wanted, machine_name(device) if here and cpus is None else "")
