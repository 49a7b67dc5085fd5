"""evaluate --bits: how well a network fits real pictures, in bits per dimension."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import normalize
from diffusion import VARIANCES, SampleNoise, SampleSpec, bound_terms, predictions
from diffusion.likelihood import check_bound
from evaluation.real_pictures import load
from files.errors import ConfigError
from runs.run import in_batches
from test_modes.given_pictures import real_data
from test_modes.job import Job
from utils.pictures import plotted

PICTURES = 100  # unless --sample_num says otherwise
SUMMARY = """{sample_info}, seed {seed}: {n:,} pictures of {data}'s {split} split, {model} in {seconds} s
at most {bits:.4f} ± {bits_error:.2g} bits per dimension, of which prior {prior:.2g} and decoder {decoder:.4f}
with the best variance of each step; with the small one {by_variance[small]:.4f}, the large {by_variance[large]:.4f}"""


def run(job: Job) -> list[Path]:
    """The bound on `sample_num` pictures, the same ones for every seed: as JSON, and a plot of its terms by t."""
    args, trained, files, curves = job.args, job.trained, [], {}
    recipe = trained.recipe
    for spec in job.specs:  # all, before hours are spent on the first
        check_bound(spec)
    data, split = real_data(args, recipe)
    pictures = load(data, split)
    if len(pictures) < 2:
        raise ConfigError("--bits needs two pictures or more: the best variance for each is that of the others")
    pictures = pictures[np.random.default_rng(0).permutation(len(pictures))[: args.sample_num or PICTURES]]
    for spec in job.specs:
        began = time.monotonic()
        batches = [errors_of(job, spec, pictures, part) for part in in_batches(len(pictures), args.batch_size)]
        given = normalize(pictures), *map(torch.cat, zip(*batches, strict=True))
        terms = {variance: bound_terms(trained.diffusion, spec, *given, variance) for variance in VARIANCES}
        bits, by_t = terms["best"].sum(1), terms["best"].mean(0)
        timesteps = spec.timesteps(recipe["timestep_num"])[::-1]
        curves[spec] = timesteps, by_t[1:]
        report = {
            "seconds": round(time.monotonic() - began, 1), "data": data["data_name"], "split": split, "n": len(bits),
            "bits": bits.mean().item(), "bits_error": bits.std().item() / len(bits) ** 0.5, "prior": by_t[0].item(),
            "decoder": by_t[-1].item(), "by_t": dict(zip(timesteps, by_t[1:].tolist(), strict=True)),
            "by_variance": {variance: each.sum(1).mean().item() for variance, each in terms.items()},
        }  # fmt: skip
        files.append(job.report(SUMMARY.format_map, spec, "bits", **report))
    return [*files, plot_bits(curves, job.path("bits"))]


def errors_of(job: Job, spec: SampleSpec, pictures: Tensor, indices: range) -> tuple[Tensor, Tensor]:
    """The `errors` (B, S) and the `last` pred_x_start (B, C, H, W) of these pictures for `bound_terms`, on the CPU."""
    trained = job.trained
    x_start, errors = normalize(pictures[indices[0] : indices[-1] + 1]).to(trained.device), []
    steps = predictions(trained.diffusion, trained.network, x_start, spec, SampleNoise(job.args.seed, indices))
    for last in tqdm(steps, f"{spec}, pictures {indices[0]} to {indices[-1]}", spec.steps, leave=False):
        errors.append((last - x_start).square().flatten(1).mean(1))
    return torch.stack(errors, 1).cpu().double(), last.cpu()


def plot_bits(curves: dict[SampleSpec, tuple[list[int], Tensor]], file: Path) -> Path:
    """Plots the bits per dimension that each step loses, over its t. The last step, t lowest, is the decoder's."""
    settings = {"xlabel": "t (the lowest t: the decoder)", "ylabel": "bits per dimension of the step from t"}
    with plotted(file, **settings, yscale="log") as axes:
        for spec, (timesteps, bits) in curves.items():
            label = f"{spec}: {bits.sum():.3f} in all"
            axes.plot(timesteps, bits, marker="." if len(bits) < 100 else None, label=label)
    return file
