"""Pictures for people: grids, and which states of a sampler are shown."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import torch
from PIL import Image, ImageFont

from test_modes.job import Job
from test_modes.progress import progress_frames
from utils.pictures import grid, grid_columns, save_table


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


def test_columns_are_as_wide_as_their_labels(tmp_path):
    """Which would lie on each other and be cut off above small pictures."""
    cells = [[Image.new("L", (20, 20), 0), Image.new("L", (20, 20), 0)]]
    alone, both = (
        np.asarray(Image.open(save_table([row], ["row"], ["a wide label", "another"][: len(row)], tmp_path / "a.png")))
        for row in (cells[0][:1], cells[0])
    )
    width = both.shape[1] - alone.shape[1]  # of a column and its gap
    assert width > ImageFont.load_default(14).getlength("a wide label")
    assert (both[-28:-8] == 0).all(0).sum() == 40 and (alone[:, -2:] == 255).all()  # nothing is cut off
    with Image.open(save_table(cells, ["row"], ["a", "b"], tmp_path / "b.png", [["a wide note", "another"]])) as table:
        assert table.width > 2 * ImageFont.load_default(14).getlength("a wide note")


def test_long_names_of_files_are_cut(tmp_path):
    """File systems hold names of 255 bytes, and a file that is being written has 23 more in its name."""
    job = Job(Namespace(model_path=Path(200 * "模" + ".pt"), save_dir=tmp_path), *[None] * 7)
    job = replace(job, stem="20261201_000000_seed9223372036854775807")
    for of, weight in ((Path(250 * "n"), 1.0), ("DPMpp_1000_0p0quad", 1.25)):
        name = job.path(of, "neighbours", weight).with_suffix(".json").name
        assert len(name.encode()) <= 232 and name.endswith("neighbours.json")


def test_texts_that_are_not_european_are_drawn_with_a_font_of_the_system(tmp_path, monkeypatch):
    """Pillow's own font has one and the same box for all that it lacks. DejaVu, which matplotlib brings, has these."""

    def drawn(text):
        return np.asarray(Image.open(save_table([[Image.new("L", (20, 20))]], [text], [""], tmp_path / "a.png")))

    monkeypatch.setattr("utils.pictures.FONTS", ("no such font.ttc",))
    assert np.array_equal(drawn("\u2603"), drawn("\u2602"))  # a snowman and an umbrella
    monkeypatch.setattr("utils.pictures.FONTS", ("no such font.ttc", matplotlib.font_manager.findfont("DejaVu Sans")))
    assert not np.array_equal(drawn("\u2603"), drawn("\u2602"))
