"""Other toolkits as arms of minutes.py: a network of the size of `small`, trained as the toolkit's own script does.

A peer is make(recipe, layout, device) -> (step, averaged, diffusion). It computes in recipe["precision"].
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice, product

import torch
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from files.errors import ConfigError
from training.batches import Batch
from utils.device import autocast, resolve_precision

WIDTH = 32  # channels of the first level

Peer = tuple[Callable[[Tensor, float], None], Callable[[], nn.Module], GaussianDiffusion]
# step(x_start, the share of the time that is over), the averaged network after training, and its diffusion


def diffusers_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """UNet2DModel with the settings of diffusers' script for unconditional training, except the network's size.

    AdamW, a learning rate of 1e-4 with 500 steps of warm-up and half a cosine, linear betas, noise, L2, clipping.
    """
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels, width = recipe["image_channel"], WIDTH
    net = UNet2DModel(
        sample_size=recipe["image_size"], in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width), norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    ).to(device, memory_format=layout)  # fmt: skip
    schedule, steps = DDPMScheduler(1000), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step(x_start: Tensor, done: float) -> None:
        nonlocal steps
        noise, t = torch.randn_like(x_start), torch.randint(1000, (len(x_start),), device=device)
        with autocast(recipe["precision"], device):
            out = net(schedule.add_noise(x_start, noise, t), t, return_dict=False)[0]
        (out - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        steps += 1
        optimizer.param_groups[0]["lr"] = 1e-4 * min(1, steps / 500) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())

    def averaged() -> nn.Module:
        average.copy_to(net.parameters())
        return Called(lambda x, t: net(x, t, return_dict=False)[0], net)

    return step, averaged, GaussianDiffusion(1000, "linear", "l2", "pred_noise")


def ddpm_pytorch_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """Unet, GaussianDiffusion and the settings of Trainer as the README of denoising_diffusion_pytorch has them.

    Adam with a learning rate of 8e-5, two batches of 32 for a step, clipping, v, sigmoid betas. The network is smaller.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion as TheirDiffusion
    from denoising_diffusion_pytorch import Unet
    from ema_pytorch import EMA

    net = Unet(dim=WIDTH, dim_mults=(1, 2, 4), channels=recipe["image_channel"])
    theirs = TheirDiffusion(net, image_size=recipe["image_size"], timesteps=1000).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=8e-5, betas=(0.9, 0.99))
    average = EMA(theirs, beta=0.995, update_every=10)

    def step(x_start: Tensor, done: float) -> None:
        for part in x_start.chunk(2):
            with autocast(recipe["precision"], device):
                loss = theirs((part + 1) / 2)
            (loss / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    diffusion = GaussianDiffusion(loss_type="l2", objective="pred_v", betas=theirs.betas.cpu())
    return step, lambda: average.ema_model.model, diffusion


class Called(nn.Module):
    """A function of (x, t) as a module, with the parameters of another one."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], module: nn.Module):
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.function(x, t)


PEERS = {"diffusers": (diffusers_peer, 16), "denoising_diffusion_pytorch": (ddpm_pytorch_peer, 64)}  # and the batch


def fastest(name: str, recipe: dict, batches: Callable[[], Iterator[Batch]], device: torch.device) -> tuple[Peer, str]:
    """The peer in the precision and memory layout in which its steps are fastest here, and these in words.

    A precision that the recipe sets by hand is obeyed. batches: returns batches from the first on. ConfigError if the
    toolkit is not installed.
    """
    make, _ = PEERS[name]
    auto = recipe["precision"] == "auto"
    precisions = dict.fromkeys(["fp32"] * auto + [resolve_precision(recipe["precision"], device)])
    ways = list(product(precisions, (torch.contiguous_format, torch.channels_last)))

    def start(precision: str, layout: torch.memory_format) -> Peer:
        torch.manual_seed(recipe["seed"])
        try:
            return make(recipe | {"precision": precision}, layout, device)
        except ImportError as error:
            raise ConfigError(f"{name} is not installed ({error}): pip install {name}, or leave the arm out") from error

    def seconds(way: tuple[str, torch.memory_format]) -> float:
        (step, *_), times = start(*way), []
        for batch in islice(batches(), 4):
            began = time.monotonic()
            step(batch.x_start, 0.0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - began)
        return min(times[1:])  # the first may choose its kernels

    precision, layout = min(ways, key=seconds)
    return start(precision, layout), f"{precision}, {str(layout).removeprefix('torch.').replace('_', ' ')}"
