"""The plan of a training: batch, memory and steps, before anything is computed."""

import copy
from pathlib import Path

import torch
from torch import nn

from datasets import DataError, Reading, fit_some, picture_shape
from diffusion import GaussianDiffusion
from files.errors import ConfigError
from runs.network import unused_keys
from training.pictures import find_pictures
from training.trajectories import compares_features
from utils.device import capability, resolve_precision


def total_steps(recipe: dict, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole training: max_steps, or train_epoch epochs; fewer if max_minutes are over before."""
    steps = recipe["max_steps"] or recipe["train_epoch"] * steps_per_epoch
    if not recipe["max_minutes"] or not recipe["steps_per_minute"]:
        return steps
    return min(steps, max(1, round(recipe["max_minutes"] * recipe["steps_per_minute"])))


def dry_run(recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, world: int, device: torch.device) -> None:
    """Prints the plan of a training; nothing is written or downloaded."""
    try:
        found = find_pictures(recipe, Path(recipe["save_dir"], recipe["pth_save_name"]), download=False)
        fit_some(found, recipe["image_size"], recipe["image_channel"], Reading.of(recipe))
        images = 2 * recipe["trajectories"] if recipe["trajectories"] else len(found)  # each is drawn twice
    except DataError as error:
        print(f"data        {error}")
        images = None
    check_batch(recipe, images, world)
    print(describe(recipe, model, diffusion, images, world, device))


def without_impossible_graphs(recipe: dict, world: int, device: torch.device) -> dict:
    """The recipe, with compile=auto for compile=graphs on other devices than CUDA, and where batches are divided."""
    if recipe["compile"] != "graphs" or (device.type == "cuda" and world * recipe["gradient_accumulation"] == 1):
        return recipe
    print("compile=auto, as CUDA graphs need CUDA and whole batches in one process")
    return recipe | {"compile": "auto"}


def check_batch(recipe: dict, images: int | None, world: int) -> None:
    """ConfigError for a batch_size that cannot be. images: their number, None if unknown."""
    B, parts = recipe["batch_size"], world * recipe["gradient_accumulation"]
    factors = f"{world} process(es) times gradient_accumulation={recipe['gradient_accumulation']}"
    if images is not None and images < B:
        raise ConfigError(f"{recipe['data_name']}: its {images} pictures are fewer than batch_size={B}: lower it")
    if B % parts:
        raise ConfigError(f"{recipe['data_name']}: batch_size={B} is not a multiple of {parts}, {factors}")


def describe(
    recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, images: int | None, world: int, device: torch.device
) -> str:
    """Batch, parameters, memory, precision, images and steps, one line each. images: their number, None if unknown."""
    B, shape = recipe["batch_size"], picture_shape(recipe["image_size"], recipe["image_channel"])
    parts = world * recipe["gradient_accumulation"]
    parameters, unused = sum(p.numel() for p in model.parameters()), ", ".join(unused_keys(recipe))
    precision = resolve_precision(recipe["precision"], device)
    tf32 = precision == "fp32" and capability(device) >= (8, 0)
    fixed = 5 * 4 * parameters  # weights, gradients, Adam's two moments, EMA
    activations = activation_bytes(model, diffusion, (B // parts, *shape))
    if images is None:
        known = f"{recipe['max_steps']:,}" if recipe["max_steps"] else f"{recipe['train_epoch']} epochs"
        length = f"{known} (the length of an epoch is unknown without the pictures)"
    else:
        steps = total_steps(recipe, images // B)
        length = f"{steps:,}: {steps / (images // B):,.1f} epochs of {images // B:,}"
    if recipe["max_minutes"] and not recipe["steps_per_minute"]:
        length += f"; fewer if they do not fit into {recipe['max_minutes']:g} minutes"
    return "\n".join(
        [
            f"batch       {(B, *shape)}" + f", {B // parts} at a time in {world} process(es)" * (parts > 1),
            f"parameters  {parameters:,}" + f"; network={recipe['network']} does not use {unused}" * bool(unused),
            f"memory      about {(fixed + activations) / 2**20:,.0f} MiB in float32 "
            f"({fixed / 2**20:,.0f} for weights, gradients, Adam and EMA; {activations / 2**20:,.0f} for activations)"
            + ", and more to compare features"
            * compares_features(recipe),
            f"precision   {precision} on {device}"
            + ", or fp32 if it is faster"
            * (recipe["precision"] == "auto" and precision == "bf16" and device.type == "cpu")
            + ", with TF32 in matrix products and convolutions" * tf32,
            f"images      {images:,}" if images else "images      not found yet",
            f"steps       {length}",
        ]
    )


def activation_bytes(model: nn.Module, diffusion: GaussianDiffusion, batch_shape: tuple[int, ...]) -> int:
    """Bytes that one float32 training step keeps for its backward pass.

    The loss runs on PyTorch's meta device, where tensors have shapes but no content. Attention counts with its (N, N)
    weights, which most kernels of a real device do not keep.
    """
    model = copy.deepcopy(model).to("meta")
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}  # by storage, so that views count once; the tensors are held, so that no address is reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta and tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = torch.empty(batch_shape, device="meta")
    t = torch.empty(batch_shape[0], dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        copy.copy(diffusion).to("meta").training_losses(model, x, t, x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
