"""evaluate --bits: how well a network fits real pictures, in bits per dimension."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import Reading, load_images, normalize
from diffusion import SampleNoise, SampleSpec, bound_terms
from files.atomic import write_file
from files.errors import ConfigError
from runs.run import in_batches
from test_modes.job import Job
from test_modes.real_data import real_data
from utils.pictures import save_figure

PICTURES = 100  # unless --sample_num says otherwise
SUMMARY = """{sample_info}, seed {seed}: {n:,} pictures of {data}'s {split} split, {model} in {seconds} s
at most {bits:.4f} ± {bits_error:.2g} bits per dimension, of which prior {prior:.2g} and decoder {decoder:.4f}"""


def run(job: Job) -> list[Path]:
    """The bound on `sample_num` pictures, the same ones for every seed: as JSON, and a plot of its terms by t."""
    args, trained, files, curves = job.args, job.trained, [], {}
    recipe = trained.recipe
    source, data_path, split = real_data(args, recipe)
    data = (source["dataset"], data_path, split, recipe["image_size"], recipe["image_channel"])
    images = load_images(*data, reading=Reading.of(source))
    count = args.sample_num or min(PICTURES, len(images))
    if count > len(images):
        raise ConfigError(f"--sample_num {count}: the {split} split has {len(images)} pictures")
    pictures = torch.from_numpy(images[np.random.default_rng(0).permutation(len(images))[:count]])
    for spec in job.specs:
        began = time.monotonic()
        batches = [terms_of(job, spec, pictures, indices) for indices in in_batches(count, args.batch_size)]
        timesteps, terms = batches[0][0], torch.cat([terms for _, terms in batches])
        bits, by_t = terms.sum(1), terms.mean(0)
        curves[spec] = timesteps[1:], by_t[1:]
        report = {
            "model": args.model_path.name, "weights": trained.weights, "step": trained.step, "sample_info": str(spec),
            "seed": args.seed, "precision": job.precision, "device": str(trained.device),
            "seconds": round(time.monotonic() - began, 1), "data": source["data_name"], "split": split, "n": count,
            "bits": bits.mean().item(), "bits_error": bits.std().item() / count**0.5, "prior": by_t[0].item(),
            "decoder": by_t[-1].item(), "by_t": dict(zip(timesteps[1:], by_t[1:].tolist(), strict=True)),
        }  # fmt: skip
        print(SUMMARY.format(**report))
        file = job.path(spec, "bits").with_suffix(".json")
        files.append(write_file(file, json.dumps(report, indent=1) + "\n"))
    return [*files, plot_bits(curves, job.path("bits"))]


def terms_of(job: Job, spec: SampleSpec, pictures: torch.Tensor, indices: range):
    """The timesteps of `bound_terms`, and the terms of these pictures: float64 (B, S + 1)."""
    trained, noise = job.trained, SampleNoise(job.args.seed, indices)
    x_start = normalize(pictures[indices[0] : indices[-1] + 1]).to(trained.device)
    try:
        terms = bound_terms(trained.diffusion, trained.network, x_start, spec, noise)
        terms = tqdm(terms, total=spec.steps + 1, desc=f"{spec}, pictures {indices[0]} to {indices[-1]}", leave=False)
        timesteps, terms = zip(*terms, strict=True)
    except ValueError as error:
        raise ConfigError(f"--sample_info: {error}") from error
    return timesteps, torch.stack(terms, 1)


def plot_bits(curves: dict[SampleSpec, tuple[list[int], torch.Tensor]], file: Path) -> Path:
    """Plots the bits per dimension that each step loses, over its t. The last step, t lowest, is the decoder's."""
    from matplotlib.figure import Figure  # imported here because it takes a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for spec, (timesteps, bits) in curves.items():
        axes.plot(timesteps, bits, marker="." if len(bits) < 100 else None, label=f"{spec}: {bits.sum():.3f} in all")
    axes.set(xlabel="t (the lowest t: the decoder)", ylabel="bits per dimension of the step from t", yscale="log")
    axes.legend()
    return save_figure(figure, file)
