"""Other toolkits as arms of minutes.py: a network of the size of `small`, trained as the toolkit's own script does.

A peer is make(recipe, layout, device) -> (step, averaged, diffusion). It computes in recipe["precision"], and takes its
width, learning rate and batch size from the recipe; PEERS has those of its script. A width is that of the first level.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice, product

import torch
from peer_parts import Called, Step, average_of, from_exploding, from_flow, step_of, with_groups
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from files.errors import ConfigError
from training.batches import Batch
from utils.device import resolve_precision

WIDTH = 32

Peer = tuple[Step, Callable[[], nn.Module], GaussianDiffusion]  # the middle: the averaged network after training

# --- the toolkits -----------------------------------------------------------------------------------------------------


def diffusers_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """UNet2DModel with the settings of diffusers' script for unconditional training, except the network's size.

    AdamW, 500 steps of warm-up and half a cosine, linear betas, noise, L2, clipping.
    """
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels, width, rate = recipe["image_channel"], recipe["model_channels"], recipe["learning_rate"]
    net = UNet2DModel(
        sample_size=recipe["image_size"], in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width), norm_num_groups=width // 4, attention_head_dim=16,
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    ).to(device, memory_format=layout)  # fmt: skip
    schedule = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def loss(x_start: Tensor) -> Tensor:
        noise, t = torch.randn_like(x_start), torch.randint(1000, (len(x_start),), device=device)
        return (net(schedule.add_noise(x_start, noise, t), t, return_dict=False)[0] - noise).square().mean()

    def rate_at(steps: int, done: float) -> float:
        return rate * min(1, steps / 500) * 0.5 * (1 + math.cos(math.pi * done))

    def averaged() -> nn.Module:
        average.copy_to(net.parameters())
        return Called(lambda x, t: net(x, t, return_dict=False)[0], net)

    step = step_of(recipe, loss, optimizer, lambda: average.step(net.parameters()), clip=1.0, rate_at=rate_at)
    return step, averaged, GaussianDiffusion(1000, "linear", "l2", "pred_noise")


def ddpm_pytorch_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """Unet, GaussianDiffusion and the settings of Trainer as the README of denoising_diffusion_pytorch has them.

    Adam, two half batches for a step, clipping, v, sigmoid betas. The network is smaller.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion as TheirDiffusion
    from denoising_diffusion_pytorch import Unet
    from ema_pytorch import EMA

    net = Unet(dim=recipe["model_channels"], dim_mults=(1, 2, 4), channels=recipe["image_channel"])
    theirs = TheirDiffusion(net, image_size=recipe["image_size"], timesteps=1000).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe["learning_rate"], betas=(0.9, 0.99))
    average = EMA(theirs, beta=0.995, update_every=10)
    step = step_of(recipe, lambda x: theirs((x + 1) / 2), optimizer, average.update, clip=1.0, parts=2)
    diffusion = GaussianDiffusion(loss_type="l2", objective="pred_v", betas=theirs.betas.cpu())
    return step, lambda: average.ema_model.model, diffusion


def smalldiffusion_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """Unet, training_loop and the settings of smalldiffusion's example cifar_unet.py, except the width.

    AdamW, no clipping, the sigmas of ScheduleSigmoid, noise, L2, dropout of 0.1, and an average whose decay warms up as
    that of torch_ema does. Attention is at half the size of the pictures, and as many channels as there share a norm.
    """
    from smalldiffusion import Scaled, ScheduleSigmoid, Unet, generate_train_sample

    channels, size, width = recipe["image_channel"], recipe["image_size"], recipe["model_channels"]
    net = Scaled(Unet)(size, channels, channels, ch=width, ch_mult=(1, 2, 2, 2), attn_resolutions=(size // 2,))
    net = with_groups(net, width // 4).to(device, memory_format=layout)
    schedule = ScheduleSigmoid(N=1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe["learning_rate"])
    average, update = average_of(net, lambda steps: min(0.9999, (1 + steps) / (10 + steps)))

    def loss(x_start: Tensor) -> Tensor:
        x_start, sigma, noise, _ = generate_train_sample(x_start, schedule)
        return net.get_loss(x_start, sigma, noise)

    step = step_of(recipe, loss, optimizer, update)
    function, diffusion = from_exploding(average, schedule.sigmas)
    return step, lambda: Called(function, average), diffusion


def torchcfm_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """UNetModelWrapper and ConditionalFlowMatcher as in torchcfm's train_cifar10.py (--model icfm), except the width.

    Adam, clipping, dropout of 0.1. The script trains for 400,000 steps, with a warm-up of 5,000 and an average over
    about 10,000 (a decay of 0.9999). Here both are the same shares of the training: an eightieth and a fortieth.
    Attention is at half the size of the pictures, and as many channels as there share a norm.
    """
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet.unet import UNetModelWrapper

    size, width, rate = recipe["image_size"], recipe["model_channels"], recipe["learning_rate"]
    net = UNetModelWrapper(
        dim=(recipe["image_channel"], size, size), num_channels=width, num_res_blocks=2, channel_mult=[1, 2, 2, 2],
        num_heads=4, num_head_channels=width // 2, attention_resolutions=str(size // 2), dropout=0.1,
    )  # fmt: skip
    net, matcher = with_groups(net, width // 4).to(device, memory_format=layout), ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    average, update = average_of(net, lambda steps: min(0.9999, steps / (steps + 40)))

    def loss(x_start: Tensor) -> Tensor:
        t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x_start), x_start)
        return (net(t, x) - velocity).square().mean()

    def rate_at(steps: int, done: float) -> float:
        return rate * min(1, 80 * done)

    step = step_of(recipe, loss, optimizer, update, clip=1.0, rate_at=rate_at)
    function, diffusion = from_flow(lambda x, t: average(t, x))
    return step, lambda: Called(function, average), diffusion


def rectified_flow_peer(recipe: dict, layout: torch.memory_format, device: torch.device) -> Peer:
    """Unet, RectifiedFlow and the settings of Trainer as the README of rectified-flow-pytorch has them.

    Adam, clipping, L2 of the velocity. The network is smaller, with three levels of its four.
    """
    from ema_pytorch import EMA
    from rectified_flow_pytorch import RectifiedFlow, Unet

    net = Unet(dim=recipe["model_channels"], dim_mults=(1, 2, 4), channels=recipe["image_channel"])
    theirs = RectifiedFlow(net).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe["learning_rate"])
    average = EMA(theirs)
    step = step_of(recipe, lambda x: theirs((x + 1) / 2), optimizer, average.update, clip=0.5)
    function, diffusion = from_flow(average.ema_model.model)
    return step, lambda: Called(function, average.ema_model.model), diffusion


KEYS = ("batch_size", "learning_rate", "model_channels", "precision")  # that a peer obeys
PEERS = {  # and the settings of their scripts, as keys of a recipe
    "diffusers": (diffusers_peer, {"batch_size": 16, "learning_rate": 1e-4}),
    "denoising_diffusion_pytorch": (ddpm_pytorch_peer, {"batch_size": 64, "learning_rate": 8e-5}),
    "smalldiffusion": (smalldiffusion_peer, {"batch_size": 256, "learning_rate": 2e-4}),
    "torchcfm": (torchcfm_peer, {"batch_size": 128, "learning_rate": 2e-4}),
    "rectified_flow_pytorch": (rectified_flow_peer, {"batch_size": 16, "learning_rate": 3e-4}),
}

# --- the fastest way --------------------------------------------------------------------------------------------------


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
        except (ValueError, ArithmeticError) as error:
            raise ConfigError(f"{name} with model_channels={recipe['model_channels']}: {error}") from error

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
