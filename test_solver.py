"""Samples from a trained checkpoint:   python test_solver.py --model_path train_results/digits/digits.pt …

random_gen draws pictures and shows how they develop from noise; compare draws a table over samplers and steps;
interpolate goes from one picture to another; evaluate measures how close the samples are to real pictures.
"""

import utils.interruptible  # noqa: F401 - first, so that Ctrl-C ends quietly while the others load

# isort: split
import json
import time
from argparse import Namespace
from collections import deque
from datetime import datetime
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import load_images, normalize, to_uint8
from datasets.files import clear_parts, own_stem, write_file
from diffusion import INTERP_MODES, SAMPLERS, SampleSpec, interpolate, sample_progressive
from evaluation.features import extractor_for
from evaluation.numbers import GROUPS, Evaluation, summary
from evaluation.pairs import chosen_pairs, pair_of_files, random_pairs
from evaluation.real_pictures import real_pictures
from evaluation.sample_dir import SampleDir, identity_of
from utils.checkpoint import Run, in_batches, load_run
from utils.command_line import (
    ArgumentParser,
    add_real_data_flags,
    add_recipe_flags,
    number,
    real_data,
    recipe_flags,
    run,
)
from utils.device import PRECISIONS, pick_device, rank_and_world, sampling_precision
from utils.errors import ConfigError
from utils.pictures import ProgressPicture, grid, grid_columns, jump, plot_steps, save_comparison, save_grid, step_sizes
from utils.recipe import parse_spec


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model_path", required=True, type=Path, metavar="P", help="a checkpoint or .safetensors")
    add("--test_mode", required=True, choices=MODES)
    add("--sample_info", nargs="+", metavar="DDIM_50_0p0", help="samplers: METHOD_STEPS_ETA, one or several")
    add("--sample_num", type=number(1, 10**7), metavar="N", help="samples; compare: a cell; interpolate: sqrt(N) pairs")
    add("--batch_size", type=number(1), default=100, metavar="B", help="samples at a time; not used by interpolate")
    add("--seed", type=number(0, 2**63 - 1), default=0, metavar="S", help="sample i depends only on it and on i")
    add("--save_dir", type=Path, default=Path("results"), metavar="D", help="where the pictures go (default: results)")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default), or of the last step")
    add("--device", metavar="cuda:0|mps|cpu", help="default: a GPU if there is one")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: half where it is fast and safe")
    add("--compile", action="store_true", help="compile the network, with CUDA graphs")
    random = parser.add_argument_group("random_gen")
    random.add_argument("--sample_dir", type=Path, metavar="D", help="also save each sample there; can be continued")
    random.add_argument("--animate", choices=("gif", "webp"), help="also save the progress as a film")
    add = parser.add_argument_group("interpolate").add_argument
    add("--interp_mode", nargs="+", choices=INTERP_MODES, help="one or several; default: lerp")
    add("--diffusion_step", type=number(1), metavar="N", help="mix after N timesteps of noise; default: half of all")
    add("--lambda_num", type=number(2, 1000), metavar="N", help="mixtures from lambda 0 to 1; default: 11")
    add("--image_indices", type=int, nargs="+", metavar="I", help="pairs of pictures by number: I J, or I J K L …")
    add("--image_files", type=Path, nargs=2, metavar="FILE", help="a pair of picture files")
    add_real_data_flags(parser)
    add_recipe_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_arguments(args)
    device = pick_device(args.device)
    trained = load_run(args.model_path, args.weights, **recipe_flags(args))
    args.precision = sampling_precision(args.precision, device, trained.recipe["objective"])
    specs = samplers(args, trained.recipe["timestep_num"])
    args.save_dir.mkdir(parents=True, exist_ok=True)
    clear_parts(args.save_dir)
    trained.to(device, args.precision, args.compile)
    began, rank = time.monotonic(), rank_and_world()[0]
    stem = f"{datetime.now():%Y%m%d%H%M%S}_seed{args.seed}" + f"_rank{rank}" * (rank > 0)
    with own_stem(args.save_dir, stem) as args.stem:
        files = MODES[args.test_mode](args, trained, specs)
    print(*files, f"{time.monotonic() - began:.1f} s on {device} in {args.precision}", sep="\n")


def check_arguments(args: Namespace) -> None:
    """Refuses flags that the mode does not use, before anything is loaded."""
    flags_of = {
        ("random_gen",): ("sample_dir", "animate"),
        ("interpolate", "evaluate"): ("data_name", "data_path", "split"),
        ("interpolate",): ("interp_mode", "diffusion_step", "lambda_num", "image_indices", "image_files"),
    }
    for modes, flags in flags_of.items():
        for flag in flags:
            if args.test_mode not in modes and getattr(args, flag) is not None:
                raise ConfigError(f"--{flag} is for --test_mode {' and '.join(modes)}, not for {args.test_mode}")
    if args.test_mode == "evaluate" and args.sample_num is not None and args.sample_num < GROUPS:
        raise ConfigError(f"--sample_num {args.sample_num}: evaluate needs at least {GROUPS}, to estimate its error")
    if args.test_mode in ("random_gen", "compare") and not args.sample_dir and (args.sample_num or 0) > 10_000:
        raise ConfigError(f"--sample_num {args.sample_num:,} is too much for a picture: --sample_dir takes that many")
    if rank_and_world()[1] > 1 and not args.sample_dir:
        raise ConfigError("several processes can only share the work of a --sample_dir")


def samplers(args: Namespace, T: int) -> list[SampleSpec]:
    """The samplers of --sample_info without duplicates, or the mode's default, for T training timesteps."""
    methods, ddim = [method for method in SAMPLERS if method != "NaiveDDPM"], [f"DDIM_{min(50, T)}_0p0"]
    default = {
        "compare": [f"{method}_{min(n, T)}_0p0" for method in methods for n in (10, 50)],
        "interpolate": ddim if "ddim" in (args.interp_mode or []) else [f"DDPM_{T}_0p0"],  # only DDIM can be inverted
    }
    texts = args.sample_info or default.get(args.test_mode, ddim)
    specs = list(dict.fromkeys(parse_spec(text, T, "--sample_info") for text in texts))
    if args.sample_dir and len(specs) > 1:
        raise ConfigError("--sample_dir takes the samples of one --sample_info")
    return specs


def picture_path(args: Namespace, what: str) -> Path:
    """<save_dir>/<timestamp>_seed<seed>_<model>_<what>.png"""
    return args.save_dir / f"{args.stem}_{args.model_path.stem}_{what}.png"


def random_gen(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """The samples of each sampler as a grid, and how the first of them develop from noise."""
    if args.sample_dir:
        return fill_sample_dir(args, trained, specs[0])
    files, count = [], args.sample_num or trained.recipe["sample_num"]
    for spec in specs:
        parts = [draw_batch(args, trained, spec, indices, files) for indices in in_batches(count, args.batch_size)]
        files.append(save_grid(torch.cat(parts), picture_path(args, f"{spec}_final"), grid_columns(count)))
    return files


def fill_sample_dir(args: Namespace, trained: Run, spec: SampleSpec) -> list[Path]:
    """Each sample that --sample_dir lacks, as its own file. The pictures show the first batch, when it is drawn."""
    files, count, (rank, world) = [], args.sample_num or trained.recipe["sample_num"], rank_and_world()
    folder = SampleDir(args.sample_dir, identity_of(trained, spec, args.seed, args.precision), count)
    batches = [b for b in in_batches(count, args.batch_size, rank, world) if not all(map(folder.has, b))]
    print(f"process {rank} of {world}: {sum(map(len, batches)):,} samples to draw into {args.sample_dir}")
    for indices in tqdm(batches, desc="batches", leave=False):
        pixels = draw_batch(args, trained, spec, indices, files)
        if indices[0] == 0:
            files.append(save_grid(pixels, picture_path(args, f"{spec}_final"), grid_columns(len(indices))))
        folder.save(indices, pixels)  # last, so that a first batch in the folder has its pictures too
    return [*files, args.sample_dir]


def draw_batch(args: Namespace, trained: Run, spec: SampleSpec, indices: range, files: list[Path]) -> torch.Tensor:
    """uint8 (B, C, S, S) on the CPU. Of the first batch it saves the progress too, and adds its files to `files`."""
    x_T, noise = trained.noise(indices, args.seed)
    frames = sample_progressive(trained.diffusion, trained.network, x_T, spec, noise)
    frames = tqdm(frames, total=spec.steps, desc=f"{spec}, samples {indices[0]} to {indices[-1]}", leave=False)
    if indices[0] == 0:
        progress = ProgressPicture(spec.steps, grid_columns(len(indices)), film=bool(args.animate))
        x = progress.watch(x_T, frames)
        files += progress.save(picture_path(args, f"{spec}_progress"), args.animate)
    else:
        x = deque(frames, maxlen=1).pop().sample
    return to_uint8(x).cpu()


def compare(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; with the seconds per image."""
    count, cells = args.sample_num or 16, {}
    trained.sample(count, SampleSpec("DDIM", min(3, trained.recipe["timestep_num"]), 0.0), args.seed, args.batch_size)
    for spec in tqdm(specs, desc="compare", leave=False):  # after a warm-up, which the first sampler would pay for
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size)
        seconds = (time.monotonic() - began) / count
        cells[spec] = grid(x, grid_columns(count)), seconds
    file, device = picture_path(args, "compare"), trained.device
    return save_comparison(cells, file, images=count, device=device, precision=args.precision)


def interpolate_pairs(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
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


def evaluate(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    recipe, files, count = trained.recipe, [], args.sample_num or 2000
    source, data_path, split = real_data(args, recipe)
    size, channels = recipe["image_size"], recipe["image_channel"]
    real = real_pictures(source["dataset"], data_path, split, source["split"], size, channels)
    evaluation = Evaluation(real, extractor_for(source["dataset"], channels, trained.device), count)
    for spec in specs:
        began = time.monotonic()
        samples = torch.cat([to_uint8(x) for x in trained.batches(count, spec, args.seed, args.batch_size)])
        seconds, (report, apart, number) = round(time.monotonic() - began, 1), evaluation(samples)
        report = dict(  # raises TypeError if the report already has one of these keys; {…} would not
            model=args.model_path.name, weights=trained.weights, step=trained.step, sample_info=str(spec),
            seed=args.seed, precision=args.precision, device=str(trained.device), seconds=seconds,
            data=source["data_name"], split=split, **report,
        )  # fmt: skip
        print(summary(report))
        file = picture_path(args, f"{spec}_evaluate").with_suffix(".json")
        write_file(file, json.dumps(report, indent=1) + "\n")
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files += [file, save_grid(torch.cat(rows), picture_path(args, f"{spec}_neighbours"), len(first))]
    return files


MODES = {"random_gen": random_gen, "compare": compare, "interpolate": interpolate_pairs, "evaluate": evaluate}

if __name__ == "__main__":
    run(main)
