"""Pictures for people: grids, labelled tables of grids, animations, and which frames to show."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from datasets import to_uint8

COARSE_TO_FINE = 0.3  # see progress_frames


def grid_columns(count: int) -> int:
    """Columns of a grid as square as can be: 10 for 100 pictures."""
    return math.ceil(math.sqrt(count))


def grid(x: Tensor, columns: int) -> Image.Image:
    """(N, C, H, W), floats in [-1, 1] or uint8, row by row, two pixels between. Tiny pictures are enlarged."""
    pixels = x.cpu() if x.dtype == torch.uint8 else to_uint8(x.cpu())
    zoom = max(1, 32 // pixels.shape[-1])  # whole pixels, so that an 8x8 digit can be seen
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return Image.fromarray(make_grid(pixels, nrow=columns, padding=2).permute(1, 2, 0).numpy())


def save_grid(x: Tensor, file: Path, columns: int) -> Path:
    """Writes a grid as a PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    grid(x, columns).save(file)
    return file


def save_table(
    cells: Sequence[Sequence[Image.Image | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    file: Path,
    notes: Sequence[Sequence[str]] | None = None,
) -> Path:
    """Writes pictures of one size as a table with labels: `rows` on the left, `columns` above, a note below a cell.

    A cell that is None stays empty.
    """
    font, ink, gap, line = ImageFont.load_default(14), "black", 8, 18  # pixels: the text's size, gap and height
    width, height = next(cell.size for row in cells for cell in row if cell)
    left = math.ceil(max((font.getlength(label) for label in rows), default=0)) + 2 * gap
    row_height = height + gap + (line if notes else 0)
    table = Image.new("RGB", (left + len(columns) * (width + gap), line + gap + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(table)
    for c, label in enumerate(columns):
        draw.text((left + c * (width + gap) + width / 2, gap / 2), label, ink, font, anchor="ma")
    for r, label in enumerate(rows):
        top = line + gap + r * row_height
        draw.text((left - gap, top + height / 2), label, ink, font, anchor="rm")
        for c, cell in enumerate(cells[r]):
            if cell:
                table.paste(cell, (left + c * (width + gap), top))
                if notes:
                    draw.text((left + c * (width + gap) + width / 2, top + height), notes[r][c], ink, font, anchor="ma")
    red, green, blue = table.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        table = red  # all grey: half the file
    table.save(file)
    return file


def save_animation(frames: Sequence[Image.Image], file: Path) -> Path:
    """Writes a GIF or a (lossless) WebP, as the file's name says, that loops and rests on its last frame."""
    durations = [100] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=True)
    return file


def progress_frames(steps: int, rows: int) -> list[int]:
    """Which states a progress picture shows, of 0 (pure noise) to `steps` (the result): first coarse, then fine.

    linspace(0, 1, rows) ** 0.3 of the way; fewer rows where steps are fewer. With ten rows
    the second one is already at (1/9)^0.3 = 52 % of the way, and the other half of the chain has nine: with
    cosine betas the signal outweighs the noise only from the middle on, and nothing can be seen before.
    """
    way = torch.linspace(0, 1, rows, dtype=torch.float64) ** COARSE_TO_FINE
    return sorted({round(float(part) * steps) for part in way} | {steps})
