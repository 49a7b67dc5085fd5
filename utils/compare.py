"""The table of methods and steps, as a picture and as CSV."""

import csv
from dataclasses import astuple, replace
from pathlib import Path

from PIL import Image

from diffusion import SampleSpec
from utils.images import save_table


def save_comparison(cells: dict[SampleSpec, tuple[Image.Image, float]], file: Path, **facts) -> list[Path]:
    """Each sampler's picture and its seconds per image: methods down, steps across. `facts` are columns of the CSV."""
    methods = list(dict.fromkeys(replace(spec, steps=1) for spec in cells))
    steps = sorted({spec.steps for spec in cells})
    table = [[cells.get(replace(method, steps=n)) for n in steps] for method in methods]
    save_table(
        [[cell and cell[0] for cell in row] for row in table],
        [_label(method) for method in methods],
        [f"{n} step{'s' * (n > 1)}" for n in steps],
        file,
        notes=[[f"{cell[1]:.3g} s each" if cell else "" for cell in row] for row in table],
    )
    with open(file.with_suffix(".csv"), "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample_info", "method", "steps", "eta", "quad", "seconds_per_image", *facts])
        for spec, (_, seconds) in cells.items():
            writer.writerow([spec, *astuple(spec), f"{seconds:.6f}", *facts.values()])
    return [file, file.with_suffix(".csv")]


def _label(spec: SampleSpec) -> str:
    eta = f" eta {spec.eta:g}" if spec.method in ("DDIM", "DPMpp") else ""
    return spec.method + eta + " quad" * spec.quad
