"""Pictures for people: grids, and which states of a sampler are shown."""

import numpy as np
import torch

from test_modes.progress import progress_frames
from utils.pictures import grid, grid_columns


def test_progress_shows_noise_and_result_and_becomes_finer():
    frames = progress_frames(1000, 10)
    assert frames[0] == 0 and frames[-1] == 1000 and len(frames) == 10
    assert (np.diff(np.diff(frames)) <= 1).all()  # each stride at most the one before, up to rounding
    assert frames[1] == round((1 / 9) ** 0.3 * 1000)
    assert progress_frames(1, 10) == [0, 1] and progress_frames(50, 1) == [0, 50]


def test_a_grid_is_as_square_as_possible():
    assert [grid_columns(count) for count in (1, 2, 4, 5, 9, 10, 100)] == [1, 2, 2, 3, 3, 4, 10]


def test_a_grid_has_the_pictures_row_by_row_two_pixels_apart():
    pictures = torch.arange(5)[:, None, None, None].expand(5, 1, 20, 20).byte() * 50
    drawn = np.asarray(grid(pictures, 3))
    assert drawn.shape == (2 * 22 + 2, 3 * 22 + 2, 3)
    for i in range(5):
        top, left = 2 + 22 * (i // 3), 2 + 22 * (i % 3)
        assert (drawn[top : top + 20, left : left + 20] == 50 * i).all()
    assert (np.asarray(grid(pictures / 127.5 - 1, 3)) == drawn).all()  # floats in [-1, 1]


def test_small_pictures_are_enlarged_by_a_whole_factor():
    pictures = torch.randint(256, (2, 3, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    drawn = np.asarray(grid(pictures, 2))
    zoom = (len(drawn) - 4) // 10
    assert drawn.shape == (10 * zoom + 4, 20 * zoom + 6, 3) and zoom > 1
    first = np.kron(pictures[0].permute(1, 2, 0), np.ones((zoom, zoom, 1)))
    assert (drawn[2:-2, 2 : 2 + 10 * zoom] == first).all()
