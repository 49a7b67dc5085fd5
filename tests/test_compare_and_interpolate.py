"""test_solver.py --test_mode compare and interpolate: what the pictures, the table and the plot show."""

import csv
import re

import numpy as np
import pytest
import torch
from helpers.pictures import pictures, pixels, sample
from PIL import Image
from sklearn.datasets import load_digits

from test_modes.interpolate import jump, step_sizes

DIGITS = (load_digits().images / 16 * 255).round().astype(np.uint8)


def test_compare_makes_one_table_and_a_csv(trained, tmp_path):
    specs = ["DDPM_5_0p0", "NaiveDDPM_5_0p0", "DDIM_5_0p0", "DDIM_3_0p0", "DDIM_2_0p0", "DDIM_2_1p0"]
    specs += ["DPMpp_2_0p0_quad"]
    sample(trained, tmp_path, "--sample_info", *specs, "--sample_num", 9, mode="compare")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_compare.csv", "digits_compare.png"]
    rows = list(csv.DictReader(made["digits_compare.csv"].open()))
    assert [row["sample_info"] for row in rows] == specs
    assert [row["steps"] for row in rows] == ["5", "5", "5", "3", "2", "2", "2"]
    assert all(float(row["seconds_per_image"]) > 0 and row["images"] == "9" for row in rows)
    assert rows[0]["device"].startswith(("cpu", "cuda")) and rows[0]["precision"] in ("fp32", "bf16")
    sample(trained, tmp_path / "alone", "--sample_info", "DDIM_5_0p0", "--sample_num", 9)
    final = pixels(pictures(tmp_path / "alone")["digits_DDIM_5_0p0_final.png"])
    table = pixels(made["digits_compare.png"])
    side, height = len(final), len(final) + 8 + 18  # a row's height: the cell, a gap and the note
    cells = {
        (r, c): table[26 + r * height :][:side, -(3 - c) * (side + 8) :][:, :side] for r in range(5) for c in range(3)
    }
    assert (cells[2, 2][..., None] == final).all()  # the same noise; methods down, steps across
    assert (cells[0, 0] == 255).all() and (cells[4, 1] == 255).all()  # what was not asked for stays empty


def cell(table, row, column):
    """A digit of a table without row labels: 8x8 pixels, of which each is enlarged to 4x4."""
    return table[26 + 40 * row :, 16 + 40 * column :][:32:4, :32:4]


def test_interpolate_makes_thirteen_columns_between_real_pictures(trained, tmp_path):
    sample(trained, tmp_path, "--sample_info", "DDIM_4_0p0", "--sample_num", 16, mode="interpolate")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_DDIM_4_0p0_interpolate.png", "digits_DDIM_4_0p0_smoothness.png"]
    picture = pixels(made["digits_DDIM_4_0p0_interpolate.png"])
    assert picture.shape == (26 + 4 * 40, 16 + 13 * 40)
    known = {digit.tobytes() for digit in DIGITS}
    assert all(np.ascontiguousarray(cell(picture, 3, column)).tobytes() in known for column in (0, 12))


def test_every_mode_in_one_call_and_in_one_plot(trained, tmp_path):
    modes = ["lerp", "slerp", "ddim", "redrawn"]
    args = ["--interp_mode", *modes, "--lambda_num", 4, "--image_indices", 3, 7, 0, 1499, "--diffusion_step", 300]
    run = sample(trained, tmp_path, "--sample_info", "DDIM_10_0p0", *args, mode="interpolate")
    names = ["digits_DDIM_10_0p0_interpolate.png"] + [f"digits_DDIM_10_0p0_{m}_interpolate.png" for m in modes[1:]]
    assert sorted(pictures(tmp_path)) == sorted([*names, "digits_DDIM_10_0p0_smoothness.png"])
    for mode in modes:
        assert re.search(rf"^{mode} DDIM_10_0p0: largest step [\d.]+ times the mean; MSE .* [\d.]+", run.stdout, re.M)
    for name in names:
        picture = pixels(pictures(tmp_path)[name])
        assert picture.shape == (26 + 2 * 40, 16 + 6 * 40)
        for (row, column), index in {(0, 0): 3, (0, 5): 7, (1, 0): 0, (1, 5): 1499}.items():
            assert (cell(picture, row, column) == DIGITS[index]).all()


def test_two_picture_files_are_a_pair(trained, tmp_path):
    for name, shade in (("a", 20), ("b", 230)):
        Image.new("RGB", (50, 40), (shade,) * 3).save(tmp_path / f"{name}.png")
    files = ["--image_files", tmp_path / "a.png", tmp_path / "b.png"]
    sample(trained, tmp_path / "r", *files, "--sample_info", "DDIM_2_0p0", mode="interpolate")
    picture = pixels(pictures(tmp_path / "r")["digits_DDIM_2_0p0_interpolate.png"])
    assert picture.shape == (26 + 40, 16 + 13 * 40)
    assert (cell(picture, 0, 0) == 20).all() and (cell(picture, 0, 12) == 230).all()


def test_jumps_are_measured():
    even = [torch.full((2, 1, 2, 2), i / 10) for i in range(11)]
    # 0.1 in float32.
    torch.testing.assert_close(step_sizes(even), torch.full((10, 2), 0.1), rtol=0, atol=1e-6)
    assert jump(step_sizes(even)) == pytest.approx(1, abs=1e-5)
    once = [torch.zeros(2, 1, 2, 2)] * 5 + [torch.ones(2, 1, 2, 2)] * 6
    assert jump(step_sizes(once)) == pytest.approx(10)
