"""Goes from one picture to another."""

from argparse import Namespace
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import normalize
from diffusion import interpolate
from files.errors import ConfigError
from test_modes.flags import depths
from test_modes.given_pictures import given_pictures
from test_modes.job import Job
from utils.pictures import TABLE_GAP, check_size, grid, grid_columns, plotted, save_film, save_table


def run(job: Job) -> list[Path]:
    """A row per pair: the first picture, the mixtures from lambda 0 to 1, the second; and how even the steps are."""
    args, trained, specs = job.args, job.trained, job.specs
    T, L = trained.recipe["timestep_num"], args.lambda_num or 11
    depth, *others = depths(args, T) or [-(-T // 2)]
    if others:
        raise ConfigError("--diffusion_step takes several numbers only for --test_mode edit")
    lambdas = [i / (L - 1) for i in range(L)]
    first, second = normalize(pairs(args, trained.recipe)).to(trained.device)
    check_size(len(first) * (L + 2), L + 2, first.shape[-2:], gap=TABLE_GAP)
    if args.animate:
        check_size(len(first), len(first), first.shape[-2:], args.animate)
    given, asked = (trained.diffusion, trained.network, first, second), product(specs, args.interp_mode or ["lerp"])
    asked = {(spec, mode): interpolate(*given, spec, depth, lambdas, args.seed, mode) for spec, mode in asked}
    files, curves = [], {spec: {} for spec in specs}
    for (spec, mode), mixtures in asked.items():
        rows = list(tqdm(mixtures, total=L, desc=f"{mode} {spec}", leave=False))
        curves[spec][mode] = steps = step_sizes(rows)
        mse = torch.stack([rows[0] - first, rows[-1] - second]).div(2).square().mean().item()
        print(f"{mode} {spec}: largest step {jump(steps):.2f} times the mean; MSE of the ends {mse:.6f} (of 0 to 1)")
        file = job.path(spec, "interpolate" if mode == "lerp" else f"{mode}_interpolate")
        cells = [[grid(x[None], 1) for x in pair] for pair in zip(first, *rows, second, strict=True)]
        columns = ["real", *(f"{round(w, 2):g}" for w in lambdas), "real"]
        files.append(save_table(cells, [""] * len(first), columns, file))
        files += save_film((grid(x, len(first)) for x in (first, *rows, second)), file, args.animate)
    return files + [plot_steps(curves[spec], lambdas, job.path(spec, "smoothness")) for spec in specs]


def pairs(args: Namespace, recipe: dict) -> Tensor:
    """uint8 (2, P, C, H, W): the chosen pictures two by two, or sqrt(sample_num) random pairs."""
    x = given_pictures(args, recipe, 2 * grid_columns(args.sample_num or recipe["sample_num"]))
    if len(x) % 2:
        raise ConfigError(f"interpolate takes pairs, and {len(x)} is an odd number of pictures")
    chosen = args.image_files or args.image_indices
    return torch.stack([x[::2], x[1::2]]) if chosen else x.reshape(2, -1, *x.shape[1:])


def step_sizes(rows: list[Tensor]) -> Tensor:
    """RMS distances between neighbouring mixtures of an interpolation, L of (P, C, H, W): (L - 1, P)."""
    return torch.stack([(b - a).square().flatten(1).mean(1).sqrt() for a, b in pairwise(rows)]).cpu()


def jump(steps: Tensor) -> float:
    """Largest step over mean step, 1 to L - 1, averaged over all pairs. steps: (L - 1, P)."""
    return (steps.amax(0) / steps.mean(0).clamp(min=1e-12)).mean().item()


def plot_steps(curves: dict[str, Tensor], lambdas: list[float], file: Path) -> Path:
    """Plots the `step_sizes` of each mode over lambda: the mean (line) and the middle half of the pairs (band)."""
    middles = [(a + b) / 2 for a, b in pairwise(lambdas)]
    with plotted(file, xlabel="lambda", ylabel="distance between neighbouring mixtures (RMS)", xlim=(0, 1)) as axes:
        for name, steps in curves.items():
            label = f"{name}: largest / mean step {jump(steps):.2f}"
            (line,) = axes.plot(middles, steps.mean(1), marker="o", label=label)
            low, high = steps.quantile(torch.tensor([0.25, 0.75]), dim=1)
            axes.fill_between(middles, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_ylim(0, None)
    return file
