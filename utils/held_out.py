"""Is it learning? The loss on the same few pictures, timesteps and noise, whenever it is asked for."""

import numpy as np
import torch

from datasets import DataError, load_images, normalize
from diffusion import GaussianDiffusion
from diffusion.gaussian import Model
from utils.batches import seed_of
from utils.metrics import quarter_means, quarter_sums
from utils.stop import StopRequest

PICTURES = 256
OTHER_SPLIT = {"train": "test", "test": "train"}


class HeldOut:
    """Pictures that are not trained on where the data set has some, and else a few of those that are (`name` tells).

    Their timesteps spread evenly over all T and their noise follows from the seed, so that two values of one run, or
    of two with the same seed, differ by the network alone.
    """

    def __init__(self, recipe: dict, images: np.ndarray, device: torch.device):
        self.name = "held_out_loss"
        try:
            split = OTHER_SPLIT[recipe["split"]]
            images = load_images(
                recipe["dataset"], recipe["data_path"], split, recipe["image_size"], recipe["image_channel"], False
            )
        except (KeyError, DataError):
            self.name = "fixed_noise_loss"
        rows = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(np.int64)
        self.x_start = normalize(torch.from_numpy(np.array(images[rows]))).to(device)
        generator = torch.Generator().manual_seed(seed_of(recipe["seed"], 2**32))
        self.noise = torch.randn(self.x_start.shape, generator=generator).to(device)
        golden = torch.arange(len(rows), dtype=torch.float64) * 0.6180339887498949 % 1  # no two pictures alike
        self.t = (golden * recipe["timestep_num"]).long().to(device)
        self.batch_size = recipe["batch_size"]

    @torch.inference_mode()
    def loss(self, network: Model, diffusion: GaussianDiffusion, stop: StopRequest) -> dict:
        """{name: the mean, name_by_quarter: four of them}; {} when the training is to stop."""
        parts, losses = (v.split(self.batch_size) for v in (self.x_start, self.t, self.noise)), []
        for x_start, t, noise in zip(*parts, strict=True):
            if stop.signum:
                return {}
            losses.append(diffusion.training_losses(network, x_start, t, noise))
        mean, by_quarter = quarter_means(quarter_sums(torch.cat(losses), self.t, diffusion.timestep_num))
        return {self.name: mean, f"{self.name}_by_quarter": by_quarter}
