"""Draws a table of samples over samplers and steps, or over guidance."""

import csv
import io
import time
from dataclasses import astuple, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from datasets import picture_shape
from diffusion import SampleSpec
from diffusion.samplers import USES_ETA
from files.atomic import write_file
from test_modes.job import Job
from utils.pictures import check_size, grid, grid_columns, save_table


def run(job: Job) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; with the seconds per image.

    Of several --guidance one table for each sampler, with classes down and guidance across.
    """
    args, trained, names, T = job.args, job.trained, job.names, job.trained.recipe["timestep_num"]
    count = args.sample_num or (len(names) * max(1, 40 // len(names)) if names else 16)
    across, down = len({spec.steps for spec in job.specs}), len({replace(spec, steps=1) for spec in job.specs})
    across, down = (len(job.guidance), 1) if len(job.guidance) > 1 else (across, down)
    columns, cells = -(-count // len(names)) if names else grid_columns(count), {}
    shown = across * columns * down * -(-count // columns)
    check_size(shown, across * columns, picture_shape(trained.recipe["image_size"], 1)[1:])
    if len(job.guidance) > 1:
        return [over_guidance(job, spec, count) for spec in job.specs]
    # a warm-up, which the first sampler would pay for: a whole batch and the last one; twice, as compiling takes
    few, short = min(count, args.batch_size + count % args.batch_size), SampleSpec("DDIM", min(3, T), 0.0)
    for _ in range(1 + args.compile):
        trained.sample(few, short, args.seed, args.batch_size, labels=job.labels, guidance=job.guidance[0])
    for spec in tqdm(job.specs, desc="compare", leave=False):
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size, labels=job.labels, guidance=job.guidance[0])
        seconds = (time.monotonic() - began) / count
        if names:  # a row a class, filled up with black
            x = torch.cat([x, x.new_full((-count % min(count, len(names)), *x.shape[1:]), -1)])
            x = torch.cat([x[i :: len(names)] for i in range(len(names))])
        cells[spec] = grid(x, columns), seconds
    file, device = job.path("compare", guidance=job.guidance[0]), trained.device
    return save_comparison(cells, file, images=count, device=device, precision=job.precision)


def over_guidance(job: Job, spec: SampleSpec, count: int) -> Path:
    """A table of one sampler, classes down and guidance across, all from the same noise."""
    args, names, table = job.args, job.names, []
    for weight in tqdm(job.guidance, desc=f"compare {spec}", leave=False):
        x = job.trained.sample(count, spec, args.seed, args.batch_size, labels=job.labels, guidance=weight)
        table.append([grid(x[i :: len(names)], -(-count // len(names))) for i in range(min(count, len(names)))])
    rows, columns = list(zip(*table, strict=True)), [f"guidance {weight}".removesuffix(".0") for weight in job.guidance]
    return save_table(rows, names[: len(rows)], columns, job.path(spec, "guidance"))


def save_comparison(cells: dict[SampleSpec, tuple[Image.Image, float]], file: Path, **facts) -> list[Path]:
    """A table of each sampler's picture and seconds per image, and the same as CSV, with `facts` as further columns."""
    methods = list(dict.fromkeys(replace(spec, steps=1) for spec in cells))
    steps = sorted({spec.steps for spec in cells})
    table = [[cells.get(replace(method, steps=n)) for n in steps] for method in methods]
    rows = [f"{m.method}{f' eta {m.eta:g}' * (m.method in USES_ETA)}{' quad' * m.quad}" for m in methods]
    notes = [[f"{cell[1]:.{2 if cell[1] < 99 else 3}g} s each" if cell else "" for cell in row] for row in table]
    cells_only = [[cell and cell[0] for cell in row] for row in table]
    save_table(cells_only, rows, [f"{n} step{'s' * (n > 1)}" for n in steps], file, notes)
    lines = [["sample_info", "method", "steps", "eta", "quad", "seconds_per_image", *facts]]
    lines += [[spec, *astuple(spec), f"{seconds:.6f}", *facts.values()] for spec, (_, seconds) in cells.items()]
    csv.writer(text := io.StringIO(newline="")).writerows(lines)
    return [file, write_file(file.with_suffix(".csv"), text.getvalue())]
