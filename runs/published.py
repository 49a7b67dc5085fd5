"""The published checkpoints, {"epoch", "unet_model"}: weights without a recipe, trained on BGR if in colour.

Weights alone count as one, too, and so does one with other entries, or that was saved from a wrapped network.
"""

import argparse
import itertools
import re
from pathlib import Path

from torch import Tensor

from diffusion.schedule import BETA_SCHEDULES
from files.errors import CheckpointError, ConfigError
from models.blocks import height_and_width
from runs.recipe import coerce, plain_recipe

NORM_GROUPS = 32  # at every width. Their other settings (4 heads, noise, 1000 steps, cosine betas) are our defaults.
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")  # names from DistributedDataParallel and torch.compile
COLOURS = {"down_blocks.0.0.weight": 1, "out.2.weight": 0, "out.2.bias": 0}  # weight: its axis of colour channels


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that describe a published checkpoint on the command line."""
    group = "for a checkpoint without a recipe; must agree with the recipe of any other"
    add = parser.add_argument_group(group).add_argument
    add("--image_size", metavar="S", help="pixels a side, or HEIGHT,WIDTH")
    add("--image_channel", type=int, help="1 (grey) or 3 (RGB)")
    add("--training_timestep_num", type=int, dest="timestep_num", help="T of the training, 1000 by default")
    add("--beta_schedule", help=f"{' | '.join(BETA_SCHEDULES)}; default: cosine")


def recipe_flags(args: argparse.Namespace) -> dict:
    """The recipe keys that `add_recipe_flags` was given on the command line, None where a flag is missing."""
    return {key: getattr(args, key) for key in ("image_size", "image_channel", "timestep_num", "beta_schedule")}


def is_published(content) -> bool:
    """Whether a loaded file looks like a published checkpoint."""
    return isinstance(content, dict) and any(k == "unet_model" or "down_blocks.0.0.weight" in str(k) for k in content)


def from_published(content: dict, file: Path, given: dict) -> tuple[dict[str, Tensor], dict]:
    """Weights for RGB pictures, and a recipe inferred from their shapes and the given keys.

    given: recipe keys or None. Raises ConfigError without image_size, CheckpointError if it does not have this format.
    """
    weights = content.get("unet_model", content)
    if not isinstance(weights, dict):
        raise CheckpointError(f"{file}: its unet_model is a {type(weights).__name__}, not a network's weights by name")
    weights = {WRAPPED.sub("", str(name)): weight for name, weight in weights.items()}
    given = {key: coerce(str(file), key, value) for key, value in given.items() if value is not None}
    try:
        shown, attended = _network(weights)
        if shown["image_channel"] == 3:
            weights |= {name: weights[name].flip(axis) for name, axis in COLOURS.items()}
    except (AttributeError, LookupError, ValueError, ZeroDivisionError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file}: its weights are not those of a published checkpoint: {error!r}") from error
    if "image_size" not in given:
        lacks = "--image_size (pixels a side), --training_timestep_num (else 1000) and --beta_schedule (else cosine)"
        seen = f"its weights show {', '.join(f'{key} {value}' for key, value in shown.items())}"
        raise ConfigError(f"{file} has no recipe: give test_solver.py or convert.py its {lacks}; {seen}")
    sizes = [min(height_and_width(given["image_size"])) // 2**level for level in attended]
    coarsest = attended == [len(shown["channel_mult"]) - 1]
    shown |= {"attention_resolutions": None if coarsest else sizes, "norm_groups": NORM_GROUPS}
    return weights, plain_recipe(file.stem, **given | shown)  # `load_run` refuses given keys that disagree


def _network(weights: dict[str, Tensor]) -> tuple[dict, list[int]]:
    """The recipe keys, inferred from names and shapes, and the levels with attention. KeyError: a missing weight."""
    width, channel = weights["down_blocks.0.0.weight"].shape[:2]
    if weights["time_embed.0.weight"].shape[1] != width:
        raise ValueError("down_blocks.0.0.weight and time_embed.0.weight are of different widths")
    if channel not in (1, 3):
        raise ValueError(f"pictures of {channel} channels, not 1 (grey) or 3 (colour)")
    widths, blocks, attended = [], [0], []  # of each level: channels and residual blocks; levels with attention
    for i in itertools.count(1):
        names = [name for name in weights if name.startswith(f"down_blocks.{i}.")]
        if not names:
            break
        if any(name.startswith(f"down_blocks.{i}.0.op.") for name in names):
            blocks.append(0)
            continue
        level, blocks[-1] = len(blocks) - 1, blocks[-1] + 1
        widths[level:] = [weights[f"down_blocks.{i}.0.conv1.2.weight"].shape[0]]
        if any(name.startswith(f"down_blocks.{i}.1.") for name in names) and level not in attended:
            attended.append(level)
    mult = [wide // width for wide in widths]
    shown = {"image_channel": channel, "model_channels": width, "channel_mult": mult, "num_res_blocks": blocks[0]}
    return shown, attended
