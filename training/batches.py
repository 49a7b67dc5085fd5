"""Everything that a training step sees: pictures, flips, timesteps and noise, as a function of (seed, step) alone.

A resumed run therefore sees exactly what an uninterrupted one would see, and no random state has to be stored. An epoch
is a permutation of the pictures, cut into whole batches; the remainder waits for the next epoch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets import normalize
from utils.device import variable

IN_MEMORY = 4 << 30  # bytes of pictures to keep in the host's memory
WORKERS = 2  # threads that fetch pictures which do not fit


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers. Changing a number or adding one gives an unrelated seed."""
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> 1)


def fits(images: np.ndarray, device: torch.device) -> bool:
    """Whether all pictures may be kept on the device: in a quarter of its free memory, or in IN_MEMORY on the CPU."""
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else IN_MEMORY
    return images.nbytes * (variable("LOCAL_WORLD_SIZE", 1) if device.type == "cpu" else 1) <= room


@dataclass(frozen=True)
class Batch:
    """This process's share of one step: x_start and noise float32 (B, C, H, W), x_start in [-1, 1]; t int64 (B,).

    labels: int64 (B,), for a network with labels.
    """

    step: int  # from 0
    x_start: Tensor
    t: Tensor
    noise: Tensor
    labels: Tensor | None = None

    def split(self, parts: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """(x_start, t, noise, labels) of each of `parts` equal parts, for gradient accumulation."""
        labels = [None] * parts if self.labels is None else self.labels.chunk(parts)
        return zip(*(values.chunk(parts) for values in (self.x_start, self.t, self.noise)), labels, strict=True)


class Batches:
    """Batches from a uint8 array of pictures (N, C, H, W) with N >= batch_size, by the recipe.

    Used keys: batch_size, horizontal_flip, seed and num_workers. batch_size counts the pictures of all processes;
    process `rank` of `world` gets its `share`.

    draw_timesteps: see `GaussianDiffusion`.
    num_workers: threads that fetch pictures ahead, from memory or from a memory-mapped file. 0: none, which is fastest
    if all pictures are on the device. None: 0 if they fit there, else 2.
    labels: int64 (N,), for a network with labels; then num_classes, which means no label, and label_dropout are used.
    """

    def __init__(
        self, images: np.ndarray, recipe: dict, draw_timesteps: Callable[[int, torch.Generator], Tensor],
        device: torch.device, rank: int = 0, world: int = 1, labels: np.ndarray | None = None,
    ):  # fmt: skip
        room, self.num_workers = fits(images, device), recipe["num_workers"]
        if self.num_workers is None:
            self.num_workers = 0 if room else WORKERS
        if room and not self.num_workers:
            images = torch.from_numpy(np.array(images) if isinstance(images, np.memmap) else images).to(device)
        self.images, self.device, self.rank, self.all_labels = images, device, rank, labels
        self.num_classes, self.label_dropout = recipe.get("num_classes"), recipe.get("label_dropout")
        self.batch_size, self.horizontal_flip = recipe["batch_size"], recipe["horizontal_flip"]
        self.seed, self.draw_timesteps = recipe["seed"], draw_timesteps
        self.share = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)
        self.steps_per_epoch = len(images) // self.batch_size
        self._epoch, self._order = None, None

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start to stop - 1.

        Flips, timesteps and noise of a step are drawn from (seed, step), for the whole batch of all processes. Before
        each batch torch's global generator is seeded from (seed, step, rank): dropout draws from it.
        """
        generator = torch.Generator(self.device)
        for step, pixels in enumerate(self.pixels(start, stop), start):
            generator.manual_seed(seed_of(self.seed, step))
            torch.manual_seed(seed_of(self.seed, step, self.rank))
            x_start = normalize(self._flipped(pixels, generator))
            shape = (self.batch_size, *x_start.shape[1:])
            t = self.draw_timesteps(self.batch_size, generator)
            noise = torch.randn(shape, generator=generator, device=self.device)
            yield Batch(step, x_start, t[self.share], noise[self.share], self.labels(step))

    def labels(self, step: int) -> Tensor | None:
        """This process's share of the labels of a step, of which a share of label_dropout is left out.

        Which ones is drawn from (seed, step) for the whole batch, by a generator of its own: everything else is drawn
        as without labels.
        """
        if self.all_labels is None:
            return None
        dropped = np.random.default_rng(seed_of(self.seed, step, 0, 0)).random(self.batch_size) < self.label_dropout
        labels = np.where(dropped, self.num_classes, self.all_labels[self.indices(step)])
        return self._sent(torch.from_numpy(labels[self.share]))

    def indices(self, step: int) -> np.ndarray:
        """The numbers of the pictures of a step, in all processes: int64 (batch_size,)."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        return self._order[i * self.batch_size : (i + 1) * self.batch_size]

    def pixels(self, start: int, stop: int) -> Iterator[Tensor]:
        """The pictures of steps start to stop - 1: this process's share of each, uint8, on the device, not flipped."""
        rows = (self.indices(step)[self.share] for step in range(start, stop))
        if isinstance(self.images, Tensor):
            for indices in rows:
                yield self.images[self._sent(torch.from_numpy(indices))]
            return
        ahead = deque()
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:  # NumPy's copies and disk reads run in parallel
            for indices in rows:
                ahead.append(pool.submit(lambda indices: torch.from_numpy(self.images[indices]), indices))
                if len(ahead) > 2 * self.num_workers:
                    yield self._sent(ahead.popleft().result())
            for pixels in ahead:
                yield self._sent(pixels.result())

    def _sent(self, values: Tensor) -> Tensor:
        """The values on the device, copied asynchronously."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def _flipped(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the pictures mirrored, if the recipe says so."""
        if not self.horizontal_flip:
            return pixels
        flips = torch.rand(self.batch_size, generator=generator, device=self.device)[self.share] < 0.5
        return torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
