"""Makes weights to share of a checkpoint, and goes between them and diffusers' folders:

python convert.py train_results/digits/digits.pt checkpoints/digits.safetensors   # one set of weights, its recipe
python convert.py train_results/digits/digits.pt digits-diffusers                 # a folder, which diffusers loads
python convert.py ddpm-cifar10-32 checkpoints/ddpm-cifar10-32.safetensors         # and one of diffusers' for us
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from utils.checkpoint import check_given, load_run
from utils.diffusers_folder import export_folder, import_folder, need_diffusers
from utils.errors import ArgumentParser, ConfigError, run
from utils.model_card import write_card
from utils.weights import facts_of, save_weights


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="FROM",
        help="a checkpoint, a .safetensors or a diffusers folder",
    )
    add("target", type=Path, metavar="TO", help="a new .safetensors, or a new diffusers folder")
    add("--weights", choices=("ema", "raw"), default="ema", help="of a checkpoint: the averaged weights or the last")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of a .safetensors: float16 is half as big")
    published = parser.add_argument_group("for a checkpoint without a recipe; any other must agree, where given")
    published.add_argument("--image_size", type=int)
    published.add_argument("--image_channel", type=int)
    published.add_argument("--training_timestep_num", type=int)
    published.add_argument("--beta_schedule")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clearing up
    to_file, target = args.target.suffix.lower() == ".safetensors", args.target
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists: choose another name, or move it away")
    if target.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin"):
        raise ConfigError(f"{target}: this writes a .safetensors or a folder, and no {target.suffix}")
    if args.dtype != "float32" and not to_file:
        raise ConfigError("--dtype is for a .safetensors: diffusers' folders are written in float32")
    if args.source.is_dir() or not to_file:
        need_diffusers()
    given = {"image_size": args.image_size, "image_channel": args.image_channel}
    given |= {"timestep_num": args.training_timestep_num, "beta_schedule": args.beta_schedule}
    if args.source.is_dir():
        trained = import_folder(args.source)
        check_given(trained.recipe, trained.weights, args.source, args.weights, given)
    else:
        trained = load_run(args.source, args.weights, **given)
    if to_file:
        facts = facts_of(trained.recipe, trained.weights, trained.step)
        save_weights(target, trained.model.state_dict(), facts, getattr(torch, args.dtype))
    else:
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            export_folder(trained, part)
            metrics = args.source.parent / "metrics.jsonl"
            write_card(trained, part, target.name, metrics if args.source.suffix == ".pt" else None)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    size = sum(file.stat().st_size for file in ([target] if to_file else target.rglob("*")) if file.is_file())
    of = f"{trained.recipe['data_name']}, {trained.weights} weights of step {trained.step:,}"
    print(f"{target}: {of}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
