"""One step of training: the loss of a batch, its gradient, and the weights and their average after it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from diffusion.few_calls import trajectory_losses
from diffusion.guidance import with_labels
from files.errors import out_of_memory_means
from training.batches import Batch
from training.ema import EMA
from training.optimizer import backward, make_optimizer, update
from training.plan import memory_advice
from training.processes import Processes
from utils.device import (
    autocast,
    compile_outcome,
    compiled,
    memory_format,
    prepare,
    ready_to_sample,
    resolve_precision,
    sampling_precision,
)


class TrainingStep:
    """Holds all that a step changes: the model, its average (ema), the optimizer and the scaler of float16's loss.

    Called as `losses, norm, taken = step(batch, rate)`, see `__call__`.
    """

    def __init__(self, recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes):
        device = processes.device
        prepare(device, recipe["deterministic"], ours=not recipe["diffusers_unet"])
        self.recipe, self.processes, self.diffusion = recipe, processes, diffusion.to(device)
        self.precision, self.advice = resolve_precision(recipe["precision"], device), memory_advice(recipe, device)
        self.model = model.to(device, memory_format=memory_format(device, self.precision)).train()
        self.ema, self.optimizer = EMA(self.model, recipe["ema_decay"]), make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.parallel = processes.parallel(self.model)
        self.network = compiled(self.parallel, recipe["compile"], device)
        to_end = partial(trajectory_losses, self.diffusion)
        self.losses = to_end if recipe["trajectories"] else self.diffusion.training_losses

    def __call__(self, batch: Batch, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """(losses, norm, taken): of each picture of this process (B,), of the gradient before clipping (), and whether
        the step was taken: not if the loss or the gradient is not finite. Nothing waits for the device.

        rate: the learning rate. TrainingError, with advice, if the memory is not enough.
        """
        parts, losses = self.recipe["gradient_accumulation"], []
        with out_of_memory_means(self.advice):
            self.optimizer.zero_grad(set_to_none=True)
            for i, (x_start, t, noise, labels) in enumerate(batch.split(parts), 1):
                with self.processes.sync_gradients(self.parallel, now=i == parts):
                    with autocast(self.precision, self.processes.device):
                        network = with_labels(self.network, labels)
                        losses.append(self.losses(network, x_start, t, noise))
                    backward(losses[-1].mean() / parts, self.scaler)
            norm, taken = update(self.optimizer, rate, self.recipe["grad_clip"], self.scaler)
            self.ema.update(batch.step, taken)
        return torch.cat(losses).detach(), norm, taken

    def sampler(self) -> Callable[..., Tensor]:
        """The average as a function of (x, t) or (x, t, labels), in the precision for sampling."""
        device, recipe = self.processes.device, self.recipe
        return ready_to_sample(
            self.ema.model, device, sampling_precision(recipe["precision"], device, recipe["objective"])
        )

    def compiled(self) -> bool | None:
        """After the first step: whether torch.compile succeeded; None if it was not asked for."""
        return compile_outcome() if self.network is not self.parallel else None
