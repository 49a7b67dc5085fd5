"""One process, or several under torchrun, and what they must agree on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import ConfigError, Stopped, TrainingError

LOST = ("onnection closed", "onnection reset", "roken pipe", "remote process exited")  # how gloo and NCCL say it


def rank_and_world() -> tuple[int, int]:
    """Which process this is, from 0, and of how many: torchrun's RANK and WORLD_SIZE, or 0 of 1."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Processes:
    """The processes that train together: one, or those that torchrun has started, each on its own device.

    A context manager: the group is opened and closed with it. Tensors on CUDA devices travel by NCCL, all others by
    gloo. Only rank 0 prints. torchrun ends all of them when one dies; TrainingError where that is noticed here first.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.world = rank_and_world()

    def __enter__(self) -> "Processes":
        if self.world > 1:
            if self.device.type == "cuda":
                here, count = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
                if here > count:
                    raise ConfigError(f"{here} processes want a CUDA device each, and this machine has {count}")
                torch.cuda.set_device(self.device)
            # long, for the others wait while rank 0 downloads and decodes, or draws a preview
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=2)
            )
        if self.rank:
            sys.stdout = open(os.devnull, "w")
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.world == 1:
            return
        if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST):
            raise TrainingError(
                f"process {self.rank} of {self.world} lost touch with another; the same command goes on from the "
                "last checkpoint"
            ) from error
        if error is None or isinstance(error, Stopped):  # else the others may not come
            dist.destroy_process_group()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block, then the others: what it downloads, decodes or mends is done when they look. Where it
        fails, they end without a word."""
        if self.rank and self.largest(0):
            sys.exit(1)
        try:
            yield
        except BaseException:
            if not self.rank:
                self.largest(1)
            raise
        if not self.rank:
            self.largest(0)

    def largest(self, number: int) -> int:
        """The largest of every process's number: the same answer for all of them, which also wait for each other."""
        if self.world == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the processes in each backward pass."""
        if self.world == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)

    def quiet(self, network: nn.Module, last: bool):
        """A context whose backward passes keep their gradients to this process, unless it is the step's last one."""
        return network.no_sync() if self.world > 1 and not last else nullcontext()
