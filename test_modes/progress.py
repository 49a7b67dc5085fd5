"""How samples develop from noise: a picture of some states, and a film."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from diffusion import Frame
from utils.pictures import grid, save_film, save_table

PROGRESS_ROWS, FILM_FRAMES = 10, 40


def progress_frames(steps: int, rows: int) -> list[int]:
    """Which states to show, from 0 (pure noise) to `steps` (the result): coarse at first, then fine.

    They are at linspace(0, 1, rows) ** 0.3 of the way, the second of ten at 52 %: with cosine betas the noise outweighs
    the signal before.
    """
    way = torch.linspace(0, 1, rows, dtype=torch.float64) ** 0.3
    return sorted({round(float(part) * steps) for part in way} | {steps})


def save_progress(
    x_T: Tensor, frames: Iterable[Frame], steps: int, columns: int, file: Path, animation: str | None
) -> tuple[Tensor, list[Path]]:
    """Runs a sampler from x_T (B, C, H, W) to its end; returns the result, and the pictures of how it develops.

    The first `columns` samples, x_t beside the predicted x_start, time running down; and a film of all if asked for.
    Only what is shown is kept, as small pictures.
    """
    rows, film = progress_frames(steps, PROGRESS_ROWS), progress_frames(steps, FILM_FRAMES) if animation else []
    cells, labels, pictures, x = [], [], [], x_T
    for done, frame in enumerate(chain(frames, [None])):  # None: the end
        if done in rows:
            cells.append([grid(part[:columns], columns) for part in (x, frame.pred_x_start if frame else x)])
            labels.append(f"t = {frame.t}" if frame else "the end")
        if done in film:
            pictures.append(grid(x, columns))
        x = frame.sample if frame else x
    files = [save_table(cells, labels, ["x_t", "predicted x_start"], file)]
    return x, files + save_film(pictures, file, animation)
