"""How pictures come out of noise: the few frames of a walk that are shown, and no others."""

from pathlib import Path

from torch import Tensor

from utils.images import grid, progress_frames, save_animation, save_table

ROWS, FILM = 10, 40  # frames in the picture and in the film


class Progress:
    """Watches a walk of `steps` steps and keeps the shown frames of its first `columns` samples, as small pictures."""

    def __init__(self, steps: int, columns: int, film: bool):
        self.columns = columns
        self.rows = set(progress_frames(steps, ROWS))
        self.film = set(progress_frames(steps, FILM)) if film else set()
        self.cells, self.labels, self.pictures = [], [], []

    def watch(self, done: int, x_t: Tensor, pred_x_start: Tensor, label: str) -> None:
        """x_t after `done` steps, and the x_start predicted from it; (B, C, H, W)."""
        if done in self.rows:
            self.cells.append([grid(part[: self.columns], self.columns) for part in (x_t, pred_x_start)])
            self.labels.append(label)
        if done in self.film:
            self.pictures.append(grid(x_t, self.columns))

    def save(self, file: Path, animation: str | None) -> list[Path]:
        """x_t beside the predicted x_start, time going down; and all of the batch as a film, a gif or webp."""
        files = [save_table(self.cells, self.labels, ["x_t", "predicted x_start"], file)]
        return [*files, save_animation(self.pictures, file.with_suffix(f".{animation}"))] if animation else files
