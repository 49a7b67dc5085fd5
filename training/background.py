"""Work beside the training: writing a checkpoint of a large network takes as long as hundreds of steps on a GPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch


class Background(AbstractContextManager):
    """Runs one job at a time in a thread, or at once if not `threaded`. A context manager that ends with the last job.

    The next call of a method raises its error, unless the block is already ending with another one.
    """

    def __init__(self, threaded: bool):
        self._pool, self._job = ThreadPoolExecutor(1) if threaded else None, None

    def start(self, job: Callable[..., None], *inputs) -> None:
        """Waits for the job before, and starts job(*inputs); in a thread with a copy of its inputs."""
        self.wait()
        if self._pool:
            self._job = self._pool.submit(job, *map(copied, inputs))
        else:
            job(*inputs)

    def wait(self) -> None:
        """Waits for the job, if one runs, and raises its error."""
        job, self._job = self._job, None
        if job:
            job.result()

    def __exit__(self, kind, error, traceback) -> None:
        if self._pool:
            self._pool.shutdown()
        if error is None:
            self.wait()


def copied(content):
    """A copy in the host's memory of a nest of dicts and tensors, which the training does not change any more."""
    if isinstance(content, dict):
        return {key: copied(value) for key, value in content.items()}
    return content.detach().to("cpu", copy=True) if isinstance(content, torch.Tensor) else content
