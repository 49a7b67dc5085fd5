"""From a recipe to its network and diffusion, and from a file's tensors to the network's weights."""

import inspect
import os
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from diffusion import GaussianDiffusion
from files.errors import CheckpointError, ConfigError
from models import NETWORKS, build_model
from runs.recipe import DIFFUSION_KEYS, KEYS, MODEL_KEYS

EXPLODED = 100  # the weights of good networks stay below 10


def build(recipe: dict) -> tuple[nn.Module, GaussianDiffusion]:
    """The network, freshly initialised, and the diffusion of a recipe. ConfigError if values do not fit."""
    _, diffusion = without_weights(recipe)
    return _network(recipe), diffusion


def without_weights(recipe: dict) -> tuple[nn.Module, GaussianDiffusion]:
    """`build`, but with the network on PyTorch's meta device: its weights have shapes, and take no memory.

    Raises ConfigError for values that do not fit, and for more weights than the machine has memory for.
    """
    try:
        with _WithoutValues(), torch.device("meta"):
            network = _network(recipe)
        check_memory(network)
        return network, GaussianDiffusion(**{key: recipe[key] for key in DIFFUSION_KEYS})
    except ValueError as error:
        raise ConfigError(f"{recipe['data_name']}: {error}") from error


class _WithoutValues(TorchFunctionMode):
    """Skips torch.nn.init on the meta device: weights that have no values need no initial ones, and random numbers
    alone would import torch.compile there, for seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" and kwargs.get("tensor", *args[:1]).is_meta:
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs)


def _network(recipe: dict) -> nn.Module:
    """Without labels where num_classes is still "auto", because the data are missing: for a dry run."""
    network, takes = recipe["network"], arguments(recipe)
    if recipe["num_classes"] and "num_classes" not in takes:
        raise ValueError(f"network={network} has no labels: set num_classes=null")
    keywords = {key: recipe[key] for key in takes}
    keywords |= {"num_classes": None} if recipe["num_classes"] == "auto" and not recipe["diffusers_unet"] else {}
    return build_model(network, recipe["diffusers_unet"], **keywords)


def arguments(recipe: dict) -> list[str]:
    """The keys that the network of a recipe takes: the arguments of its class."""
    return list(inspect.signature(NETWORKS[recipe["network"]]).parameters)


def unused_keys(recipe: dict) -> list[str]:
    """The keys of other networks that a recipe sets, such as those of the block of its data."""
    data = {"image_size", "image_channel", "num_classes"}  # it sees them in the pictures, if it does not ask for them
    others = MODEL_KEYS.keys() - {"network", "diffusers_unet", *data, *arguments(recipe)}
    return [key for key in MODEL_KEYS if key in others and recipe[key] != KEYS[key].default]


def check_memory(network: nn.Module) -> None:
    """ValueError if the weights of a network need more memory than this machine has, where the system says."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return
    numbers = sum(weight.numel() for weight in network.parameters())
    if (needed := 4 * numbers / 2**30) > memory:
        raise ValueError(f"its {numbers:,} weights need {needed:,.0f} GiB, and this machine has {memory:,.0f} GiB")


def load_state(model: nn.Module, tensors: dict, file: Path | str, assign: bool = False) -> None:
    """load_state_dict, strict. CheckpointError names the first tensor that does not fit or is not finite.

    assign: the tensors become the weights of a network that has none yet, see `without_weights`.
    """
    try:
        model.load_state_dict(tensors, assign=assign)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{file}: its weights do not fit the network: {' '.join(lines[1:2] or lines)}") from error
    if assign:
        for weight in model.parameters():
            weight.data = weight.data.float().clone(memory_format=torch.contiguous_format)  # names may share a tensor
    check_weights(model, file)


def check_weights(model: nn.Module, file: Path | str) -> None:
    """CheckpointError for a weight that is not finite; a line if the training has diverged."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{file}: its weight {name} is not finite: use an older checkpoint")
    if (largest := largest_weight(model)) > EXPLODED:
        print(f"{file}: its weights reach {largest:.1e}: its training has diverged, and samples will be noise")


def largest_weight(model: nn.Module) -> float:
    """The largest absolute value of all weights."""
    return torch.nn.utils.get_total_norm(list(model.parameters()), float("inf")).item()
