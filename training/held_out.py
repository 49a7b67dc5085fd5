"""A validation loss that is comparable over a training: always the same pictures, timesteps and noise."""

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from datasets import OTHER_SPLIT, DataError, Reading, load_images, load_labelled, normalize
from diffusion.gaussian import Model
from diffusion.guidance import with_labels
from training.batches import seed_of

PICTURES = 256
Pictures = tuple[str, np.ndarray, np.ndarray | None]  # the name of their loss; uint8 (N, C, H, W); labels (N,) or None


def held_out_pictures(recipe: dict, images: np.ndarray, labels: np.ndarray | None) -> Pictures:
    """Pictures that are not trained on, for a "held_out_loss"; if there are none the others, for a "fixed_noise_loss".

    images: the training pictures. labels: theirs, for a network with labels.
    """
    if split := OTHER_SPLIT.get(recipe["split"]):
        data = (recipe["dataset"], recipe["data_path"], split, recipe["image_size"], recipe["image_channel"])
        with suppress(DataError):  # they are not here
            if labels is None:
                return "held_out_loss", load_images(*data, download=False, reading=Reading.of(recipe)), None
            return "held_out_loss", *load_labelled(*data, recipe["class_names"], False, Reading.of(recipe))[:2]
    return "fixed_noise_loss", images, labels


class HeldOut:
    """The loss of 256 pictures. Their timesteps are spread evenly over all T, and the noise follows from the seed, so
    that two values differ only by the network.

    pictures: as of `held_out_pictures`. network: the one to evaluate, usually the average. losses: as of
    `GaussianDiffusion.training_losses`.
    """

    def __init__(
        self, recipe: dict, pictures: Pictures, network: Model, losses: Callable[..., Tensor], device: torch.device
    ):
        (self.name, images, labels), self.network, self.losses = pictures, network, losses
        self.timestep_num = recipe["timestep_num"]
        self.batch_size = recipe["batch_size"] // recipe["gradient_accumulation"]  # a part, as memory may demand
        self.rows = rows = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(np.int64)
        self.x_start = normalize(torch.from_numpy(np.array(images[rows]))).to(device)
        self.labels = None if labels is None else torch.from_numpy(labels[rows]).to(device)
        generator = torch.Generator().manual_seed(seed_of(recipe["seed"], 2**32))
        self.noise = torch.randn(self.x_start.shape, generator=generator).to(device)
        golden = torch.arange(len(rows), dtype=torch.float64) * 0.6180339887498949 % 1  # its steps spread evenly
        self.t = (golden * self.timestep_num).long().to(device)

    @torch.inference_mode()
    def loss(self) -> dict:
        """{name: the mean, name_by_quarter: the means of the quarters of t}."""
        losses = []
        for rows in torch.arange(len(self.t)).split(self.batch_size):
            network = with_labels(self.network, None if self.labels is None else self.labels[rows])
            losses.append(self.losses(network, self.x_start[rows], self.t[rows], self.noise[rows]))
        mean, by_quarter = quarter_means(quarter_sums(torch.cat(losses), self.t, self.timestep_num))
        return {self.name: mean, f"{self.name}_by_quarter": by_quarter}


def quarter_sums(losses: Tensor, t: Tensor, timestep_num: int) -> Tensor:
    """The sums of losses (B,) by quarter of t (B,), [0, T/4) and so on, and their counts: (8,)."""
    of_quarter = t[:, None] * 4 // timestep_num == torch.arange(4, device=t.device)  # (B, 4)
    sums = torch.where(of_quarter, losses[:, None], 0).sum(0)  # of a product, inf would be NaN in the others
    return torch.cat([sums, of_quarter.sum(0)])


def quarter_means(sums: Tensor) -> tuple[float | None, list[float | None]]:
    """The mean loss and the means by quarter from `quarter_sums`; None where there are no losses, and where one is not
    finite, which JSON has no number for.
    """
    values, counts = sums[:4].tolist(), sums[4:].tolist()
    pairs = [(sum(values), sum(counts)), *zip(values, counts, strict=True)]
    mean, *by_quarter = [value / count if count and math.isfinite(value) else None for value, count in pairs]
    return mean, by_quarter
