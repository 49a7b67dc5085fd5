"""Everything that a training step sees: pictures, flips, timesteps and noise, as a function of (seed, step) alone.

A resumed run therefore sees exactly what an uninterrupted one would see, and no random state has to be stored. An epoch
is a permutation of the pictures, cut into whole batches; the remainder waits for the next epoch.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datasets import normalize
from diffusion import GaussianDiffusion
from utils.device import from_torchrun

IN_MEMORY = 4 << 30  # bytes of pictures to keep in the host's memory; on a GPU it is a quarter of what is free
WORKERS = 2  # threads that fetch pictures which do not fit


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers. Changing a number or adding one gives an unrelated seed."""
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Batch:
    """This process's share of one step."""

    step: int  # from 0
    x_start: Tensor  # float32 (B, C, H, W) in [-1, 1]
    t: Tensor  # int64 (B,)
    noise: Tensor  # like x_start
    labels: Tensor | None = None  # int64 (B,), for a network with labels

    def first(self, count: int) -> "Batch":
        """The first pictures of it, for a trial."""
        labels = self.labels if self.labels is None else self.labels[:count]
        return Batch(self.step, self.x_start[:count], self.t[:count], self.noise[:count], labels)

    def split(self, parts: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """(x_start, t, noise, labels) of each of `parts` equal parts, for gradient accumulation."""
        labels = [None] * parts if self.labels is None else self.labels.chunk(parts)
        return zip(*(values.chunk(parts) for values in (self.x_start, self.t, self.noise)), labels, strict=True)


class Batches:
    """Batches from a uint8 array of pictures (N, C, H, W) with N >= batch_size, by the recipe.

    Its batch_size counts the pictures of all processes; process `rank` of `world` gets its `share`. Its num_workers
    are threads that fetch pictures ahead: by default none if all fit on the device, else 2.
    diffusion: draws the timesteps. labels: int64 (N,), for a network with labels.
    """

    def __init__(
        self, images: np.ndarray, recipe: dict, diffusion: GaussianDiffusion, device: torch.device, rank: int = 0,
        world: int = 1, labels: np.ndarray | None = None,
    ):  # fmt: skip
        on_cpu, self.num_workers = IN_MEMORY // from_torchrun("LOCAL_WORLD_SIZE", 1), recipe["num_workers"]
        fit = images.nbytes <= (torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else on_cpu)
        if self.num_workers is None:
            self.num_workers = 0 if fit else WORKERS
        if fit and not self.num_workers:
            images = torch.from_numpy(np.array(images) if isinstance(images, np.memmap) else images).to(device)
        self.images, self.device, self.rank, self.all_labels = images, device, rank, labels
        self.recipe, self.diffusion = recipe, diffusion
        self.batch_size, self.seed = recipe["batch_size"], recipe["seed"]
        self.share = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)
        self.steps_per_epoch = len(images) // self.batch_size
        seed, count = self.seed, len(images)  # of self the cache would keep all pictures
        # two epochs, since pictures are fetched ahead
        self.order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(count))

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start to stop - 1, of a training that ends there.

        Flips, timesteps and noise are drawn from (seed, step), for the batch of all processes; dropout draws from
        torch's global generator, which is seeded from (seed, step, rank).
        """
        generator = torch.Generator(self.device)
        for step, pixels in enumerate(self.pixels(start, stop), start):
            generator.manual_seed(seed_of(self.seed, step))
            torch.manual_seed(seed_of(self.seed, step, self.rank))
            yield Batch(step, *self.drawn(step, pixels, generator, step / stop), self.labels(step))

    def drawn(
        self, step: int, pixels: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x_start, t, noise) of this process's share of a step.

        pixels: as `pixels` yields them. progress: see `draw_timesteps`.
        """
        if self.recipe["horizontal_flip"]:  # half of the pictures
            flips = torch.rand(self.batch_size, generator=generator, device=self.device)[self.share] < 0.5
            pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
        t = self.diffusion.draw_timesteps(self.batch_size, generator, progress)
        noise = torch.randn((self.batch_size, *pixels.shape[1:]), generator=generator, device=self.device)
        return normalize(pixels), t[self.share], noise[self.share]

    def labels(self, step: int) -> Tensor | None:
        """This process's share of the labels of a step, of which a share of label_dropout is left out.

        Which ones is drawn by a generator of its own, so that everything else is drawn as without labels.
        """
        if self.all_labels is None:
            return None
        draws = np.random.default_rng(seed_of(self.seed, step, 0, 0)).random(self.batch_size)
        dropped = draws < self.recipe["label_dropout"]
        labels = np.where(dropped, self.recipe["num_classes"], self.all_labels[self.indices(step)])
        return self._sent(torch.from_numpy(labels[self.share]))

    def indices(self, step: int) -> np.ndarray:
        """The numbers of the pictures of a step, in all processes: int64 (batch_size,)."""
        epoch, i = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[i * self.batch_size : (i + 1) * self.batch_size]

    def pixels(self, start: int, stop: int) -> Iterator[Tensor]:
        """The pictures of steps start to stop - 1: this process's share of each, uint8, on the device, not flipped."""
        yield from self.fetched(self.indices(step)[self.share] for step in range(start, stop))

    def fetched(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """The pictures of each of several lists of numbers, int64 (B,): uint8, on the device."""
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
