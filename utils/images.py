"""Pictures for people: grids, and the frames of a progress picture."""

import math
from datetime import datetime
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from datasets import to_uint8

COARSE_TO_FINE = 0.3  # the mission's exponent: most rows show the late steps, where shapes appear


def grid_columns(count: int) -> int:
    """Columns of a grid as square as can be: 10 for 100 pictures."""
    return math.ceil(math.sqrt(count))


def save_grid(x: Tensor, file: Path, columns: int) -> Path:
    """Writes (N, C, H, W) in [-1, 1] as a PNG, row by row, two pixels between. Tiny pictures are enlarged."""
    pixels = to_uint8(x.cpu())
    zoom = max(1, 32 // pixels.shape[-1])  # whole pixels, so that an 8x8 digit can be seen
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid = make_grid(pixels, nrow=columns, padding=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(file)
    return file


def progress_frames(steps: int, rows: int) -> list[int]:
    """Which states a progress picture shows, of 0 (pure noise) to `steps` (the result): first coarse, then fine.

    linspace(0, 1, rows) ** 0.3 of the way, as in the mission; fewer rows where steps are fewer.
    """
    way = torch.linspace(0, 1, rows, dtype=torch.float64) ** COARSE_TO_FINE
    return sorted({round(float(part) * steps) for part in way} | {steps})


def picture_path(save_dir: Path, model: str, what: str) -> Path:
    """<save_dir>/<timestamp>_<model>_<what>.png"""
    return save_dir / f"{datetime.now():%Y%m%d%H%M%S}_{model}_{what}.png"
