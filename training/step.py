"""One step of training: the loss of a batch, its gradient, and the weights and their average after it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from datasets import picture_shape
from diffusion import GaussianDiffusion
from diffusion.few_calls import trajectory_losses
from diffusion.guidance import learning_guidance, with_labels
from files.errors import out_of_memory_means
from models.critic import Critic
from training.batches import Batch
from training.ema import EMA
from training.optimizer import backward, make_optimizer, update
from training.processes import Processes
from training.trajectories import compares_features
from training.way import compile_outcome, compiled, prepare
from utils.device import autocast, ready_to_sample, sampling_precision

TOO_LARGE = (
    "batch_size={batch_size}, gradient_accumulation={gradient_accumulation} and precision={precision} need more memory "
    "than is available: raise gradient_accumulation (the same batch in smaller parts), or set precision=bf16 (fp16 on "
    "GPUs before Ampere) or a smaller batch_size"
)

CRITIC = {"optimizer": "adam", "Adam_beta1": 0.0, "Adam_beta2": 0.99}
FASTER = 4  # the critic's learning rate, in times of the network's


class TrainingStep:
    """All that a step changes: the model, its average (ema), the optimizer, the scaler. way: see `usual_way`.

    A training on trajectories compares pictures in the features of the model as it is given here; with critic_weight
    a critic of these features, with its own optimizer, is trained in the same steps.
    """

    def __init__(self, recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes, way: dict):
        self.way, device = way, processes.device
        if self.way["threads"]:
            torch.set_num_threads(self.way["threads"])
        prepare(device, recipe["deterministic"], ours=not recipe["diffusers_unet"])
        self.recipe, self.processes, self.diffusion = recipe, processes, diffusion.to(device)
        self.precision = self.way["precision"]
        layout = torch.channels_last if self.way["channels_last"] else torch.contiguous_format
        self.model = model.to(device, memory_format=layout).train()
        self.ema, self.optimizer = EMA(self.model, recipe["ema_decay"]), make_optimizer(self.model, recipe, processes)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.parallel = processes.parallel(self.model)  # the same weights, with gradients of all processes
        self.network = compiled(self.parallel, recipe["compile"], device)  # the same, which a step calls
        self.losses, self.critic, self.optimizers = self.diffusion.training_losses, None, [self.optimizer]
        if recipe["trajectories"]:
            self.losses = self._losses_of_trajectories(recipe, device)

    def _losses_of_trajectories(self, recipe: dict, device: torch.device) -> Callable[..., Tensor]:
        """`trajectory_losses` with the features of the model as it is now, and with a new critic if there is one."""
        weights = {key: recipe[key] for key in ("feature_weight", "critic_weight")}
        features = deepcopy(self.model).eval().requires_grad_(False).features if compares_features(recipe) else None
        if recipe["critic_weight"]:
            picture = torch.zeros(1, *picture_shape(recipe["image_size"], recipe["image_channel"]), device=device)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(recipe["seed"])
                self.critic = Critic(features(picture), recipe["num_classes"] or 0).to(device)
            self.optimizers.append(make_optimizer(self.critic, recipe | CRITIC))
        return partial(trajectory_losses, self.diffusion, features=features, critic=self.critic, **weights)

    def __call__(self, batch: Batch, rate: float, late: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(losses, norm, taken): of each picture of this process (B,), of the gradient before clipping (), and whether
        the step was taken: not if the loss or the gradient is not finite. Nothing waits for the device.

        rate: the learning rate. late: whether it is one of the second half of all steps, which learn guidance.
        TrainingError, with advice, if the memory is not enough.
        """
        parts, losses, learned = self.recipe["gradient_accumulation"], [], self.recipe["learned_guidance"]
        with out_of_memory_means(TOO_LARGE.format(**self.recipe)):
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            for i, (x_start, t, noise, labels) in enumerate(batch.split(parts), 1):
                with self.processes.sync_gradients(self.parallel, now=i == parts):
                    with autocast(self.precision, self.processes.device):
                        if late and learned > 1:  # which only networks with labels have
                            network = learning_guidance(self.network, labels, learned, self.recipe["num_classes"])
                        else:
                            network = with_labels(self.network, labels)
                        of_class = {"labels": labels} if self.critic else {}
                        losses.append(self.losses(network, x_start, t, noise, **of_class))
                    backward(losses[-1].mean() / parts, self.scaler)
            norm, taken = update(self.optimizer, rate, self.recipe["grad_clip"], self.scaler)
            if self.critic:
                # a sum, not the mean: a constant factor does not change Adam's steps
                self.processes.add([weight.grad for weight in self.critic.parameters()])
                update(self.optimizers[1], FASTER * rate, None)
            self.ema.update(batch.step, taken)
        return torch.cat(losses).detach(), norm, taken

    def sampler(self) -> Callable[..., Tensor]:
        """The average as a function of (x, t) or (x, t, labels), in the precision for sampling."""
        device, recipe = self.processes.device, self.recipe
        asked = "fp32" if self.precision == "fp32" else recipe["precision"]  # auto: where bfloat16 is slower, not it
        return ready_to_sample(self.ema.model, device, sampling_precision(asked, device, recipe["objective"]))

    def how(self) -> str:
        """On which device, in which precision, and, after the first step, whether torch.compile succeeded."""
        compiled = ""
        if self.network is not self.parallel:
            compiled = ", compiled" if compile_outcome() else "; torch.compile failed, so parts ran uncompiled"
        return f"on {self.processes.device} in {self.precision}{compiled}"
