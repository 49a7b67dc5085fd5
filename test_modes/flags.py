"""The flags that not every mode of test_solver.py has, and the labels and guidance that they ask for."""

from argparse import Namespace
from pathlib import Path

from datasets import SPLITS
from diffusion import EDIT_MODES, INTERP_MODES
from evaluation.features import FEATURES
from files.errors import ConfigError
from runs.labels import class_names, class_numbers, usual_guidance
from utils.command_line import number

DRAW, START = "random_gen, compare, evaluate", "interpolate, inpaint, edit"  # from noise, from pictures
CLASSES = "of a network with labels, by number or name; samples have them in turn; default: all"
WEIGHTS = "0: no label, 1: the label, above 1: more of it; default: of the recipe; several: a picture or report each"
FLAGS = {  # (the modes that have it, what it means, its keywords)
    "labels": (DRAW, CLASSES, {"nargs": "+", "metavar": "L"}),
    "guidance": (DRAW, WEIGHTS, {"nargs": "+", "type": number(0, 1000, float), "metavar": "W"}),
    "sample_dir": ("random_gen, evaluate", "save each sample there; can be continued", {"type": Path, "metavar": "D"}),
    "animate": (f"random_gen, {START}", "also save the progress as a film", {"choices": ("gif", "webp")}),
    "image_indices": (START, "pictures; interpolate: pairs, I J I J …", {"type": int, "nargs": "+", "metavar": "I"}),
    "image_files": (START, "pictures; interpolate: pairs, A B A B …", {"type": Path, "nargs": "+", "metavar": "FILE"}),
    "data_name": (f"{START}, evaluate", "a block of --config; default: the training's data set", {"metavar": "NAME"}),
    "data_path": (f"{START}, evaluate", "where the data are", {"metavar": "P"}),
    "split": (f"{START}, evaluate", "default: the split of the training", {"choices": SPLITS}),
    "interp_mode": ("interpolate", "one or several; default: lerp", {"nargs": "+", "choices": INTERP_MODES}),
    "lambda_num": ("interpolate", "from lambda 0 to 1; default: 11", {"type": number(2, 1000), "metavar": "N"}),
    "diffusion_step": ("interpolate, edit", "timesteps of noise", {"type": number(1), "nargs": "+", "metavar": "N"}),
    "edit_mode": ("edit", "add noise (sdedit, the default), or invert DDIM", {"nargs": "+", "choices": EDIT_MODES}),
    "mask": ("inpaint", "a picture as large as the others, white where to fill", {"type": Path, "metavar": "FILE"}),
    "mask_box": ("inpaint", "fill a box of pixels: X Y W H", {"type": number(0), "nargs": 4, "metavar": "N"}),
    "jump_length": ("inpaint", "RePaint: in timesteps; default: 40 of 1000", {"type": number(1), "metavar": "N"}),
    "resamplings": ("inpaint", "RePaint: take each step N times; default: 5", {"type": number(1), "metavar": "N"}),
    "bits": ("evaluate", "only how well the network fits real pictures, in bits", {"action": "store_true"}),
    "features": ("evaluate", "to measure distances in; see docs/sampling.md", {"choices": FEATURES}),
    "samples": ("evaluate", "measure the pictures in a folder instead", {"type": Path, "metavar": "FOLDER"}),
    "statistics": ("evaluate", "also to published mu and sigma of real pictures", {"type": Path, "metavar": "NPZ"}),
    "classes": ("evaluate", "drawn as in the split (default), or in turn", {"choices": ("proportional", "even")}),
}  # fmt: skip


def labels_and_guidance(args: Namespace, recipe: dict) -> dict:
    """The labels, names and guidance of a `Job`. ConfigError for what the network cannot follow."""
    path, names = args.model_path, class_names(recipe)
    weights = list(dict.fromkeys(args.guidance or [usual_guidance(recipe)]))
    if names and not recipe["label_dropout"] and (args.test_mode not in DRAW or args.bits):
        raise ConfigError(f"{path} was trained with label_dropout=0, but {args.test_mode} asks it without labels")
    try:
        numbers = [class_numbers(recipe, args.labels, w) for w in weights][0]
    except ValueError as error:
        raise ConfigError(f"{path}, --labels and --guidance: {error}") from error
    return {"labels": numbers, "names": [names[i] for i in numbers or []], "guidance": weights}


def depths(args: Namespace, T: int) -> list[int] | None:
    """--diffusion_step, if given: at most the T timesteps of the training."""
    if (depth := max(args.diffusion_step or [0])) > T:
        raise ConfigError(f"--diffusion_step {depth}: {args.model_path} was trained with {T} timesteps")
    return args.diffusion_step
