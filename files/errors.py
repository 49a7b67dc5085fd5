"""The errors that end a script with one line on stderr; see `utils.command_line.run`."""

import re
import reprlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlevel = 3
short = _SHORT.repr  # but of at most a few hundred characters: a value from a file may be of any size

# of the CPU, CUDA, cuBLAS, and of oneDNN, which says less; "a primitive descriptor" is another error of its
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|could not create a (primitive(?! desc)|memory)"
)


class ConfigError(Exception):
    """An invalid argument or configuration: exit 2, before anything else happens."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used or written: exit 1."""


class DamagedCheckpointError(CheckpointError):
    """A truncated or corrupted file: the checkpoint before it may take its place."""


class TrainingError(Exception):
    """A training that cannot continue: exit 1. Its checkpoints are good."""


class Stopped(Exception):
    """A training that was stopped by a signal: exit 128 + the signal's number, the convention of shells."""

    def __init__(self, signum: int, message: str):
        super().__init__(f"stopped by {signal.Signals(signum).name} {message}")
        self.signum = signum


@contextmanager
def out_of_memory_means(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error of the block, on the CPU or a device, into a TrainingError with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error)):
            raise TrainingError(f"out of memory: {advice}") from error
        raise
