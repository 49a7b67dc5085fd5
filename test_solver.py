"""Samples from a trained checkpoint:   python test_solver.py --model_path train_results/digits/digits.pt

random_gen writes the final pictures and how they came out of noise; interpolate goes from one picture to another.
"""

import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import load_images, normalize
from diffusion import interpolate
from utils.checkpoint import load_run
from utils.config import load_recipe, parse_spec
from utils.device import pick_device
from utils.errors import ArgumentParser, ConfigError, run
from utils.images import grid_columns, picture_path, progress_frames, save_grid


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, type=Path, metavar="P", help="a checkpoint")
    parser.add_argument("--test_mode", required=True, choices=("random_gen", "interpolate"))
    parser.add_argument(
        "--sample_info",
        nargs="+",
        metavar="DDIM_50_0p0",
        help="METHOD_STEPS_ETA, one or several; unless given, DDIM_50_0p0, or DDPM of all steps to interpolate",
    )
    parser.add_argument(
        "--sample_num", type=int, metavar="N", help="pictures; to interpolate, as many pairs as a square of N is wide"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--save_dir", type=Path, default=Path("results"), metavar="D")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="the averaged weights or the last")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="for --data_name")
    parser.add_argument("--data_name", metavar="NAME", help="take the pairs from this block's data, not the training's")
    parser.add_argument("--data_path", metavar="P", help="where the pairs' data are")
    checked = parser.add_argument_group("checked against the checkpoint's recipe, where given")
    checked.add_argument("--image_size", type=int)
    checked.add_argument("--image_channel", type=int)
    checked.add_argument("--training_timestep_num", type=int)
    checked.add_argument("--beta_schedule")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.sample_num is not None and args.sample_num < 1:
        raise ConfigError(f"--sample_num must be at least 1, not {args.sample_num}")
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"--seed must be from 0 to 2**63 - 1, not {args.seed}")
    if args.test_mode == "random_gen" and (args.data_name or args.data_path):
        raise ConfigError("--data_name and --data_path say where pairs to interpolate come from; random_gen has none")
    trained = load_run(args.model_path, args.weights)
    recipe = trained.recipe
    for flag in ("image_size", "image_channel", "training_timestep_num", "beta_schedule"):
        given, in_recipe = getattr(args, flag), recipe[flag.removeprefix("training_")]
        if given is not None and given != in_recipe:
            raise ConfigError(f"--{flag} {given}: {args.model_path} was trained with {in_recipe}")
    T = recipe["timestep_num"]
    texts = args.sample_info or [f"DDPM_{T}_0p0" if args.test_mode == "interpolate" else f"DDIM_{min(50, T)}_0p0"]
    texts = list(dict.fromkeys(texts))
    specs = [parse_spec(text, T, "--sample_info") for text in texts]
    args.save_dir.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    trained.model.to(device)
    trained.diffusion.to(device)
    for spec in specs:
        began = time.monotonic()
        mode = random_gen if args.test_mode == "random_gen" else interpolate_pairs
        for file in mode(args, trained, spec, device):
            print(file)
        print(f"{spec}: {time.monotonic() - began:.1f} s on {device}")


def random_gen(args, trained, spec, device) -> list[Path]:
    """The samples in a grid, and the way of the first of them out of noise: time goes down the picture."""
    recipe, generator = trained.recipe, torch.Generator().manual_seed(args.seed)
    shape = (recipe["image_channel"], recipe["image_size"], recipe["image_size"])
    x = torch.randn(args.sample_num or recipe["sample_num"], *shape, generator=generator).to(device)
    columns = grid_columns(len(x))
    shown, rows = set(progress_frames(spec.steps, columns)), [x[:columns].cpu()]
    frames = trained.diffusion.sample_progressive(trained.model, x, spec, generator)
    for done, frame in enumerate(tqdm(frames, total=spec.steps, desc=str(spec), leave=False), 1):
        if done in shown:
            rows.append(frame.sample[:columns].cpu())
    name = args.model_path.stem
    return [
        save_grid(frame.sample, picture_path(args.save_dir, name, f"{spec}_final"), columns),
        save_grid(torch.cat(rows), picture_path(args.save_dir, name, f"{spec}_progress"), columns),
    ]


def interpolate_pairs(args, trained, spec, device) -> list[Path]:
    """A column a pair: the first picture, lambda 0 to 1 in 11 steps, the second picture."""
    recipe, lambdas = trained.recipe, [i / 10 for i in range(11)]
    source = load_recipe(args.config, args.data_name) if args.data_name else recipe
    data = (source["dataset"], args.data_path or source["data_path"], source["split"])
    images = load_images(*data, recipe["image_size"], recipe["image_channel"])
    pairs = grid_columns(args.sample_num or recipe["sample_num"])
    if len(images) < 2 * pairs:
        raise ConfigError(
            f"{pairs} pairs take {2 * pairs} pictures, and {data[1]} has {len(images)}: lower --sample_num"
        )
    chosen = np.random.default_rng(args.seed).choice(len(images), 2 * pairs, replace=False)
    first, second = normalize(torch.from_numpy(images[chosen])).to(device).chunk(2)
    generator, depth = torch.Generator().manual_seed(args.seed), -(-recipe["timestep_num"] // 2)
    mixed = interpolate(trained.diffusion, trained.model, first, second, spec, depth, lambdas, generator)
    rows = [first, *tqdm(mixed, total=len(lambdas), desc=str(spec), leave=False), second]
    return [save_grid(torch.cat(rows), picture_path(args.save_dir, args.model_path.stem, f"{spec}_interpolate"), pairs)]


if __name__ == "__main__":
    run(main)
