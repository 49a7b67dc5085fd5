"""What a training step sees: a function of (seed, step) alone, so that a resumed run goes on exactly.

An epoch is a permutation of the pictures cut into whole batches; what is left over waits for the next.
"""

import numpy as np
import torch
from torch import Tensor

from datasets import normalize

ON_DEVICE = 4 << 30  # data sets up to this many bytes live on the training device


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; another number anywhere gives an unrelated seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Batches:
    """Batches of a uint8 array of pictures (N, C, H, W), N >= batch_size, flipped and normalised on the device."""

    def __init__(self, images: np.ndarray, batch_size: int, horizontal_flip: bool, seed: int, device: torch.device):
        if images.nbytes <= ON_DEVICE:
            images = torch.from_numpy(np.array(images) if isinstance(images, np.memmap) else images).to(device)
        self.images = images
        self.batch_size, self.horizontal_flip, self.seed, self.device = batch_size, horizontal_flip, seed, device
        self.steps_per_epoch = len(images) // batch_size
        self._epoch, self._order = None, None

    def indices(self, step: int) -> np.ndarray:
        """Which pictures, int64 (batch_size,), optimizer step number `step` (from 0) trains on."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        return self._order[i * self.batch_size : (i + 1) * self.batch_size]

    def batch(self, step: int) -> Tensor:
        """The pictures of a step as float32 (batch_size, C, H, W) in [-1, 1].

        Flips come from torch's global generator, which the caller seeds for the step.
        """
        indices = self.indices(step)
        if isinstance(self.images, Tensor):
            x = self.images[torch.from_numpy(indices).to(self.device)]
        else:
            x = torch.from_numpy(self.images[indices]).to(self.device)
        if self.horizontal_flip:
            flips = torch.rand(len(x), device=self.device) < 0.5
            x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        return normalize(x)
