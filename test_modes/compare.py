"""Draws a table of samples over samplers and steps, or over guidance."""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion import SampleSpec
from test_modes.job import Job
from utils.pictures import grid, grid_columns, save_comparison, save_csv, save_table

FLAGS = ("labels", "guidance")


def run(job: Job) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; with the seconds per image.

    Of several --guidance one table for each sampler, with classes down and guidance across.
    """
    args, trained, names = job.args, job.trained, job.names
    count, cells = args.sample_num or (len(names) * max(1, 40 // len(names)) if names else 16), {}
    columns = -(-count // len(names)) if names else grid_columns(count)
    trained.sample(count, SampleSpec("DDIM", min(3, trained.recipe["timestep_num"]), 0.0), args.seed, args.batch_size)
    if len(job.guidance) > 1:
        return [file for spec in job.specs for file in over_guidance(job, spec, count)]
    for spec in tqdm(job.specs, desc="compare", leave=False):  # after a warm-up, which the first sampler would pay for
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size, labels=job.labels, guidance=job.guidance[0])
        seconds = (time.monotonic() - began) / count
        by_class = torch.cat([x[i :: len(names)] for i in range(len(names))]) if names else x
        cells[spec] = grid(by_class, columns), seconds
    file, device = job.path("compare", guidance=job.guidance[0]), trained.device
    return save_comparison(cells, file, images=count, device=device, precision=job.precision)


def over_guidance(job: Job, spec: SampleSpec, count: int) -> list[Path]:
    """A table of one sampler, classes down and guidance across, all from the same noise; and its seconds as CSV."""
    args, trained, names, table = job.args, job.trained, job.names, []
    lines = [["sample_info", "guidance", "seconds_per_image", "images", "device", "precision"]]
    for weight in tqdm(job.guidance, desc=f"compare {spec}", leave=False):
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size, labels=job.labels, guidance=weight)
        seconds = (time.monotonic() - began) / count
        table.append([grid(x[i :: len(names)], -(-count // len(names))) for i in range(min(count, len(names)))])
        lines.append([spec, str(weight).removesuffix(".0"), f"{seconds:.6f}", count, trained.device, job.precision])
    file, rows = job.path(spec, "guidance"), list(zip(*table, strict=True))
    save_table(rows, names[: len(rows)], [f"guidance {line[1]}" for line in lines[1:]], file)
    return [file, save_csv(lines, file.with_suffix(".csv"))]
