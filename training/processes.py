"""One process, or several under torchrun: what they share, and how they stop together at a signal."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from files.errors import ConfigError, Stopped
from utils.device import from_torchrun, rank_and_world

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Processes:
    """The processes that train together: one, or those started by torchrun, each on its own device.

    A context manager that opens and closes the process group. Only rank 0 prints and writes. torchrun ends all
    processes when one dies.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.world = rank_and_world()

    def __enter__(self) -> "Processes":
        if self.world > 1:
            if self.device.type == "cuda":
                here, count = from_torchrun("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
                if here > count:
                    raise ConfigError(f"{here} processes need a CUDA device each, and this machine has {count}")
                torch.cuda.set_device(self.device)
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            # a long timeout: the others wait while rank 0 downloads, decodes, or draws trajectories for hours
            dist.init_process_group(backend, timeout=timedelta(days=7))
        if self.rank:
            sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.world > 1 and (error is None or isinstance(error, Stopped)):  # else the others may never get here
            dist.destroy_process_group()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, so that they find what it downloaded, decoded or repaired.

        If it fails there, the others exit silently.
        """
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
        """The largest of the processes' numbers. All processes wait for each other here and get the same result."""
        if self.world == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def add(self, values: list[Tensor]) -> None:
        """Sums tensors over all processes, in place and in one exchange."""
        if self.world > 1:
            dist.all_reduce(flat := torch.cat([value.flatten() for value in values]))
            for value, total in zip(values, flat.split([value.numel() for value in values]), strict=True):
                value.copy_(total.view_as(value))

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the processes in each backward pass."""
        if self.world == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)

    def sync_gradients(self, network: nn.Module, now: bool):
        """A context in which backward passes average the gradients over the processes only if `now`."""
        return network.no_sync() if self.world > 1 and not now else nullcontext()


class StopRequest:
    """Delays SIGINT (Ctrl-C) and SIGTERM to the end of the step. A second signal ends the process immediately.

    Under torchrun, which passes signals on, it may arrive twice, and a second one changes nothing.
    """

    def __init__(self, processes: Processes):
        self.processes, self.signum = processes, 0

    def __enter__(self) -> "StopRequest":
        self.before = {signum: signal.signal(signum, self._notice) for signum in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _notice(self, signum: int, _frame) -> None:
        self.signum, alone = signum, self.processes.world == 1
        if alone:
            for other in SIGNALS:  # the kernel's default ends the process even in the middle of a backward pass
                signal.signal(other, signal.SIG_DFL)
        again = "; send it again to stop at once" if alone else ""
        os.write(2, f"\n{signal.Signals(signum).name}: finishing this step and saving{again}\n".encode())

    def agreed(self) -> int:
        """The signal that any process has received, 0 for none. All processes get the same answer at the same step."""
        agreed = self.processes.largest(self.signum)
        if agreed:  # a signal that arrives while the processes agree on 0 is kept for the next step
            self.signum = agreed
        return agreed
