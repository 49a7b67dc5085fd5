"""How many optimizer steps fit into max_minutes: a short trial before the first step of a run measures it."""

import time

from torch import Tensor, nn

from diffusion import GaussianDiffusion
from diffusion.guidance import with_labels
from training.batches import Batches
from training.ema import EMA
from training.optimizer import backward, update
from training.processes import Processes
from utils.device import autocast

TRIAL = 20  # steps that are timed


def steps_per_minute(
    recipe: dict, network: nn.Module, diffusion: GaussianDiffusion, ema: EMA, optimizer, batches: Batches,
    processes: Processes, precision: str,
) -> float:  # fmt: skip
    """The speed of TRIAL steps, after one that is not timed because it may compile. All processes get the same number.

    The learning rate is 0, so that the weights and their average stay as they are; the optimizer is left without a
    state. A run therefore trains as if there had been no trial.
    """
    parts, began = recipe["gradient_accumulation"], 0.0
    for batch in batches.steps(0, TRIAL + 1):
        optimizer.zero_grad(set_to_none=True)
        for i, (x_start, t, noise, labels) in enumerate(batch.split(parts), 1):
            with processes.sync_gradients(network, now=i == parts):
                with autocast(precision, processes.device):
                    losses = diffusion.training_losses(with_labels(network, labels), x_start, t, noise)
                backward(losses.mean() / parts)
        norm, taken = update(optimizer, 0.0, recipe["grad_clip"])
        ema.update(batch.step, taken)
        if batch.step == 0:
            began = _now(norm)
    seconds = processes.largest(max(1, round(1e6 * (_now(norm) - began)))) / 1e6
    optimizer.zero_grad(set_to_none=True)
    optimizer.state.clear()
    return 60 * TRIAL / seconds


def _now(norm: Tensor) -> float:
    """The time at which the device has computed this."""
    norm.item()
    return time.monotonic()
