"""What a training step sees: a function of (seed, step) alone, so that a resumed run goes on exactly.

An epoch is a permutation of the pictures cut into whole batches; what is left over waits for the next.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from datasets import normalize

IN_MEMORY = 4 << 30  # bytes
WORKERS = 2  # that fetch pictures which do not fit


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; another number anywhere, or one more, gives an unrelated seed."""
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> 1)


def fits(images: np.ndarray, device: torch.device) -> bool:
    """Whether all pictures may live on the device: in a quarter of its free memory, or in IN_MEMORY of the host's."""
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else IN_MEMORY
    return images.nbytes * int(os.environ.get("LOCAL_WORLD_SIZE", 1) if device.type == "cpu" else 1) <= room


class Batches:
    """Batches of a uint8 array of pictures (N, C, H, W), N >= batch_size, flipped and normalised on the device.

    They follow the recipe's batch_size, horizontal_flip, seed and num_workers. Of each batch, batch_size pictures in
    all, process `rank` of `world` has its `share`.

    num_workers: threads that fetch pictures ahead, out of memory or a memory-mapped file; 0: nobody does, which is
    fastest where all pictures are on the device; None: 0 where they fit, else 2.
    """

    def __init__(self, images: np.ndarray, recipe: dict, device: torch.device, rank: int = 0, world: int = 1):
        room, self.num_workers = fits(images, device), recipe["num_workers"]
        if self.num_workers is None:
            self.num_workers = 0 if room else WORKERS
        if room and not self.num_workers:
            images = torch.from_numpy(np.array(images) if isinstance(images, np.memmap) else images).to(device)
        self.images, self.device = images, device
        self.batch_size, self.horizontal_flip, self.seed = (
            recipe[key] for key in ("batch_size", "horizontal_flip", "seed")
        )
        self.share = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)
        self.steps_per_epoch = len(images) // self.batch_size
        self._epoch, self._order = None, None

    def indices(self, step: int) -> np.ndarray:
        """Which pictures, int64 (batch_size,), optimizer step number `step` (from 0) trains on, in all processes."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        return self._order[i * self.batch_size : (i + 1) * self.batch_size]

    def pixels(self, start: int, stop: int) -> Iterator[Tensor]:
        """The pictures of steps start to stop - 1, a step at a time: this process's share, uint8, on the device."""
        rows = (self.indices(step)[self.share] for step in range(start, stop))
        if isinstance(self.images, Tensor):
            for indices in rows:
                yield self.images[self._sent(torch.from_numpy(indices))]
            return
        ahead = deque()
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:  # NumPy copies, and waits for disks, in parallel
            for indices in rows:
                ahead.append(pool.submit(lambda indices: torch.from_numpy(self.images[indices]), indices))
                if len(ahead) > 2 * self.num_workers:
                    yield self._sent(ahead.popleft().result())
            for pixels in ahead:
                yield self._sent(pixels.result())

    def _sent(self, values: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """float32 (B, C, H, W) in [-1, 1], flipped by the generator, which draws for the whole batch."""
        if self.horizontal_flip:
            flips = torch.rand(self.batch_size, generator=generator, device=self.device)[self.share] < 0.5
            pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
        return normalize(pixels)
