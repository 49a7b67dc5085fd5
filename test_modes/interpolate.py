"""Goes from one picture to another."""

from argparse import ArgumentParser, Namespace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import load_images, normalize
from diffusion import INTERP_MODES, SampleSpec, interpolate
from test_modes.names import picture_path
from test_modes.pairs import chosen_pairs, pair_of_files, random_pairs
from utils.checkpoint import Run
from utils.command_line import number, real_data
from utils.errors import ConfigError
from utils.pictures import grid_columns, jump, plot_steps, save_grid, step_sizes

FLAGS = ("interp_mode", "diffusion_step", "lambda_num", "image_indices", "image_files")
FLAGS += ("data_name", "data_path", "split")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("interpolate").add_argument
    add("--interp_mode", nargs="+", choices=INTERP_MODES, help="one or several; default: lerp")
    add("--diffusion_step", type=number(1), metavar="N", help="mix after N timesteps of noise; default: half of all")
    add("--lambda_num", type=number(2, 1000), metavar="N", help="mixtures from lambda 0 to 1; default: 11")
    add("--image_indices", type=int, nargs="+", metavar="I", help="pairs of pictures by number: I J, or I J K L …")
    add("--image_files", type=Path, nargs=2, metavar="FILE", help="a pair of picture files")


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """A column per pair: the first picture, the mixtures from lambda 0 to 1, the second; and how even the steps are."""
    T, L = trained.recipe["timestep_num"], args.lambda_num or 11
    depth, lambdas = args.diffusion_step or -(-T // 2), [i / (L - 1) for i in range(L)]
    if depth > T:
        raise ConfigError(
            f"--diffusion_step {depth}: {args.model_path} was trained with {T} timesteps: use at most {T}"
        )
    first, second = normalize(torch.from_numpy(pairs(args, trained.recipe))).to(trained.device)
    given, jobs = (trained.diffusion, trained.network, first, second), {}
    try:  # the arguments are checked here; the computation starts when the rows are read
        for spec, mode in product(specs, args.interp_mode or ["lerp"]):
            jobs[spec, mode] = interpolate(*given, spec, depth, lambdas, args.seed, mode)
    except ValueError as error:
        raise ConfigError(f"--interp_mode and --sample_info: {error}") from error
    files, curves = [], {spec: {} for spec in specs}
    for (spec, mode), mixtures in jobs.items():
        rows = list(tqdm(mixtures, total=L, desc=f"{mode} {spec}", leave=False))
        curves[spec][mode] = steps = step_sizes(rows)
        mse = torch.stack([rows[0] - first, rows[-1] - second]).div(2).square().mean().item()
        print(f"{mode} {spec}: largest step {jump(steps):.2f} times the mean; MSE of the ends {mse:.6f} (of 0 to 1)")
        what = f"{spec}_interpolate" if mode == "lerp" else f"{spec}_{mode}_interpolate"
        files.append(save_grid(torch.cat([first, *rows, second]), picture_path(args, what), len(first)))
    return files + [plot_steps(curves[spec], lambdas, picture_path(args, f"{spec}_smoothness")) for spec in specs]


def pairs(args: Namespace, recipe: dict) -> np.ndarray:
    """uint8 (2, P, C, S, S): two files, pictures by number, or sqrt(sample_num) random pairs."""
    size, channels = recipe["image_size"], recipe["image_channel"]
    if args.image_files:
        if args.image_indices or args.data_name or args.data_path or args.split:
            raise ConfigError("--image_files cannot be combined with another choice of pictures")
        return pair_of_files(args.image_files, size, channels)
    source, data_path, split = real_data(args, recipe)
    images = load_images(source["dataset"], data_path, split, size, channels)
    if args.image_indices is not None:
        return chosen_pairs(images, args.image_indices)
    return random_pairs(images, grid_columns(args.sample_num or recipe["sample_num"]), args.seed)
