"""Converts a checkpoint to weights to share, and to and from diffusers folders:

python convert.py train_results/digits/digits.pt checkpoints/digits.safetensors   # one set of weights with its recipe
python convert.py train_results/digits/digits.pt digits-diffusers                 # a folder that diffusers loads
python convert.py ddpm-cifar10-32 checkpoints/ddpm-cifar10-32.safetensors         # from a diffusers folder
"""

import utils.interruptible  # noqa: F401 - first, so that Ctrl-C ends quietly while the others load

# isort: split
import os
from pathlib import Path

import torch

from files.atomic import part_folder
from files.errors import ConfigError
from runs.published import add_recipe_flags, recipe_flags
from runs.run import check_given, checkpoint_of, load_run
from runs.shared_weights import facts_of, save_shared_weights
from sharing.diffusers_folder import export_folder, import_folder
from sharing.model_card import write_card
from utils.command_line import ArgumentParser, run


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("source", type=checkpoint_of, metavar="FROM", help="a checkpoint or .safetensors, a run's or diffusers folder")
    add("target", type=Path, metavar="TO", help="a new .safetensors, or a new diffusers folder")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default), or of the last step")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of a .safetensors: float16 halves the file")
    add_recipe_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    to_file, target, given = args.target.suffix.lower() == ".safetensors", args.target, recipe_flags(args)
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists: choose another name, or move it away")
    if target.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin"):
        raise ConfigError(f"{target}: convert.py writes a .safetensors or a folder, not a {target.suffix}")
    if args.dtype != "float32" and not to_file:
        raise ConfigError("--dtype is for a .safetensors: diffusers folders are written in float32")
    if args.source.is_dir():
        trained = import_folder(args.source)
        check_given(trained.recipe, trained.weights, args.source, args.weights, given)
    else:
        trained = load_run(args.source, args.weights, **given)
    if to_file:
        facts = facts_of(trained.recipe, trained.weights, trained.step)
        save_shared_weights(target, trained.model.state_dict(), facts, getattr(torch, args.dtype))
    else:
        with part_folder(target) as part:
            export_folder(trained, part)
            write_card(trained, part, target.name)
    size = sum(file.stat().st_size for file in ([target] if to_file else target.rglob("*")) if file.is_file())
    of = f"{trained.recipe['data_name']}, {trained.weights} weights of step {trained.step:,}"
    print(f"{target}: {of}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
