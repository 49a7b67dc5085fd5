"""A validation loss that is comparable over a training: always the same pictures, timesteps and noise."""

import numpy as np
import torch

from datasets import OTHER_SPLIT, DataError, load_images, normalize
from diffusion import GaussianDiffusion
from diffusion.gaussian import Model
from training.batches import seed_of
from training.processes import StopRequest

PICTURES = 256


class HeldOut:
    """The loss of 256 pictures that are not trained on; if the data set has none, of 256 training pictures.

    `name` is "held_out_loss" or "fixed_noise_loss" accordingly. The timesteps are spread evenly over all T, and the
    noise follows from the seed, so that two values of one run, or of two runs with one seed, differ only by the
    network.

    images: the training pictures, uint8 (N, C, H, W). network: the one to evaluate, usually the average.
    """

    def __init__(
        self, recipe: dict, images: np.ndarray, network: Model, diffusion: GaussianDiffusion, stop: StopRequest
    ):
        self.name, self.network, self.diffusion, self.stop = "held_out_loss", network, diffusion, stop
        try:
            split = OTHER_SPLIT[recipe["split"]]
            images = load_images(
                recipe["dataset"], recipe["data_path"], split, recipe["image_size"], recipe["image_channel"], False
            )
        except (KeyError, DataError):
            self.name = "fixed_noise_loss"
        device = diffusion.betas.device
        rows = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(np.int64)
        self.x_start = normalize(torch.from_numpy(np.array(images[rows]))).to(device)
        generator = torch.Generator().manual_seed(seed_of(recipe["seed"], 2**32))
        self.noise = torch.randn(self.x_start.shape, generator=generator).to(device)
        golden = (
            torch.arange(len(rows), dtype=torch.float64) * 0.6180339887498949 % 1
        )  # golden-ratio steps: evenly spread
        self.t = (golden * recipe["timestep_num"]).long().to(device)
        self.batch_size = recipe["batch_size"]

    @torch.inference_mode()
    def loss(self) -> dict:
        """{name: the mean, name_by_quarter: the means of the quarters of t}; {} if the training is being stopped."""
        parts, losses = (v.split(self.batch_size) for v in (self.x_start, self.t, self.noise)), []
        for x_start, t, noise in zip(*parts, strict=True):
            if self.stop.signum:
                return {}
            losses.append(self.diffusion.training_losses(self.network, x_start, t, noise))
        mean, by_quarter = quarter_means(quarter_sums(torch.cat(losses), self.t, self.diffusion.timestep_num))
        return {self.name: mean, f"{self.name}_by_quarter": by_quarter}


def quarter_sums(losses: torch.Tensor, t: torch.Tensor, timestep_num: int) -> torch.Tensor:
    """The sums of losses (B,) by quarter of t (B,), [0, T/4) and so on, and their counts: (8,)."""
    of_quarter = (t[:, None] * 4 // timestep_num == torch.arange(4, device=t.device)).to(losses.dtype)  # (B, 4)
    return torch.cat([(losses[:, None] * of_quarter).sum(0), of_quarter.sum(0)])  # a product might run in TF32


def quarter_means(sums: torch.Tensor) -> tuple[float | None, list[float | None]]:
    """The mean loss and the means by quarter from `quarter_sums`; None where there are no losses."""
    values, counts = sums[:4].tolist(), sums[4:].tolist()
    means = [value / count if count else None for value, count in zip(values, counts, strict=True)]
    return (sum(values) / sum(counts) if sum(counts) else None), means
