"""test_solver.py --test_mode inpaint and edit, evaluate --bits, and the films of all of them."""

import importlib
import json
import re

import numpy as np
import pytest
from helpers.pictures import pictures, pixels, sample
from helpers.scripts import ROOT, call, in_process, refused
from PIL import Image
from sklearn.datasets import load_digits

DIGITS = (load_digits().images / 16 * 255).round().astype(np.uint8)
FEW = ("--sample_info", "DDPM_4_0p0", "--jump_length", 500, "--resamplings", 2)


def cell(grid, row, column):
    """A picture of 8x8 in a grid, which shows each pixel as 4x4."""
    return grid[2 + 34 * row :, 2 + 34 * column :][:32:4, :32:4, 0]


def test_inpaint_draws_the_picture_its_hole_and_fillings(trained, tmp_path):
    args = ("--image_indices", 3, 7, 5, "--mask_box", 2, 1, 4, 6, "--sample_num", 2, *FEW)
    sample(trained, tmp_path, *args, mode="inpaint")
    grid = pixels(pictures(tmp_path)["digits_DDPM_4_0p0_inpaint.png"])
    assert grid.shape == (3 * 34 + 2, 4 * 34 + 2, 3)
    hole = np.zeros((8, 8), bool)
    hole[1:7, 2:6] = True
    for row, index in enumerate((3, 7, 5)):
        original, masked, *filled = (cell(grid, row, column) for column in range(4))
        assert (original == DIGITS[index]).all() and (masked[hole] == 128).all()
        for other in (masked, *filled):
            assert (other[~hole] == DIGITS[index][~hole]).all()
        assert (filled[0][hole] != filled[1][hole]).any()
    sample(trained, tmp_path / "again", *args, "--batch_size", 1, "--precision", "fp32", mode="inpaint")
    again = pixels(pictures(tmp_path / "again")["digits_DDPM_4_0p0_inpaint.png"])
    assert np.abs(again.astype(int) - grid).max() <= 1  # rounding


def test_a_mask_is_resized_and_cropped_as_the_pictures_are(trained, tmp_path):
    rng, mask = np.random.default_rng(0), np.zeros((16, 32), np.uint8)
    Image.fromarray(rng.integers(0, 256, (16, 32), np.uint8)).save(tmp_path / "a.png")
    mask[:, :16] = 255  # of the middle, 16x16, its left half
    Image.fromarray(mask).save(tmp_path / "m.png")
    files = ("--image_files", tmp_path / "a.png", "--sample_num", 1)
    sample(trained, tmp_path / "m", *files, "--mask", tmp_path / "m.png", *FEW, mode="inpaint")
    sample(trained, tmp_path / "b", *files, "--mask_box", 0, 0, 16, 16, *FEW, mode="inpaint")
    grids = [pixels(pictures(tmp_path / name)["digits_DDPM_4_0p0_inpaint.png"]) for name in "mb"]
    assert (grids[0] == grids[1]).all()
    hole = cell(grids[0], 0, 1) == 128
    assert hole[:, :6].all() and not hole[:, 6:].all(0).any()  # bicubic looks two pixels far


def test_edit_draws_a_row_per_depth(trained, tmp_path):
    args = ("--image_indices", 3, 7, "--diffusion_step", 1, 500, 1000, "--sample_info", "DDIM_10_0p0")
    sample(trained, tmp_path, *args, "--sample_num", 2, "--edit_mode", "sdedit", "ddim", mode="edit")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_DDIM_10_0p0_ddim_edit.png", "digits_DDIM_10_0p0_edit.png"]
    table = pixels(made["digits_DDIM_10_0p0_edit.png"])
    rows = [table[8 + (36 + 8) * row :, -(4 * 34 + 2) - 8 : -8][:36] for row in range(4)]  # gaps of 8
    rows = [[row[2:34:4, 2 + 34 * column :][:, :32:4] for column in range(4)] for row in rows]
    for column, index in enumerate((3, 3, 7, 7)):
        assert (rows[0][column] == DIGITS[index]).all()
    assert (rows[3][0] != rows[3][1]).any()  # each edit has its own noise
    ddim = pixels(made["digits_DDIM_10_0p0_ddim_edit.png"])
    assert ddim.shape == table.shape and (ddim != table).any()


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize(
    "mode, args, name, frames",
    [
        (
            "interpolate",
            ("--sample_info", "DDIM_4_0p0", "--lambda_num", 3, "--sample_num", 4),
            "DDIM_4_0p0_interpolate",
            5,
        ),
        ("inpaint", ("--mask_box", 1, 1, 4, 4, "--sample_num", 2, *FEW), "DDPM_4_0p0_inpaint", 5),
        ("edit", ("--sample_info", "DDIM_10_0p0", "--diffusion_step", 200, 400), "DDIM_10_0p0_edit", 4),
    ],
)
def test_films_on_request(trained, tmp_path, mode, args, name, frames, kind):
    sample(trained, tmp_path, *args, "--animate", kind, mode=mode)
    film = Image.open(pictures(tmp_path)[f"digits_{name}.{kind}"])
    assert film.format == kind.upper() and film.n_frames == frames
    if mode == "inpaint":  # it ends with the picture that is saved
        film.seek(frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
        assert np.abs(last - pixels(pictures(tmp_path)[f"digits_{name}.png"])).max() <= 1


def test_bits_are_reported_with_their_error_and_by_t(trained, tmp_path):
    args = ("--bits", "--split", "test", "--sample_num", 12, "--sample_info", "DDPM_5_0p0", "DDPM_10_0p0")
    run = sample(trained, tmp_path, *args, "--precision", "fp32", mode="evaluate")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_DDPM_10_0p0_bits.json", "digits_DDPM_5_0p0_bits.json", "digits_bits.png"]
    report = json.loads(made["digits_DDPM_5_0p0_bits.json"].read_text())
    assert (
        report["n"] == 12 and report["split"] == "test" and list(report["by_t"]) == ["999", "799", "599", "399", "199"]
    )
    assert report["bits"] == pytest.approx(report["prior"] + sum(report["by_t"].values()))
    assert report["decoder"] == report["by_t"]["199"] and 0 < report["bits_error"] < report["bits"]
    assert list(report["by_variance"]) == ["small", "large", "best"] and report["by_variance"]["best"] == report["bits"]
    assert report["bits"] < min(report["by_variance"]["small"], report["by_variance"]["large"])
    assert f"at most {report['bits']:.4f} ± {report['bits_error']:.2g} bits per dimension" in run.stdout
    sample(trained, tmp_path / "b", *args, "--precision", "fp32", "--batch_size", 5, mode="evaluate")
    again = json.loads(pictures(tmp_path / "b")["digits_DDPM_5_0p0_bits.json"].read_text())
    assert again["bits"] == pytest.approx(report["bits"], rel=1e-5)  # float32, summed in another order
    sample(trained, tmp_path / "c", *args, "--precision", "fp32", "--seed", 1, mode="evaluate")
    other = json.loads(pictures(tmp_path / "c")["digits_DDPM_5_0p0_bits.json"].read_text())
    assert other["bits"] != report["bits"]


BOX, ONE = ["--mask_box", "1", "1", "4", "4"], ["--image_indices", "1"]


@pytest.mark.parametrize(
    "args, says",
    [
        (["inpaint", *ONE], ["--mask FILE, white where to fill, or --mask_box X Y W H"]),
        (["inpaint", *BOX, "--mask", "m.png"], ["--mask FILE, white where to fill, or --mask_box X Y W H"]),
        (["inpaint", "--mask_box", "5", "1", "4", "4"], ["--mask_box 5 1 4 4", "beyond the pictures", "8x8 pixels"]),
        (["inpaint", "--mask_box", "1", "1", "0", "4"], ["--mask_box 1 1 0 4", "nothing to fill"]),
        (["inpaint", "--mask_box", "0", "0", "8", "8"], ["--mask_box 0 0 8 8", "nothing to keep"]),
        (["inpaint", "--mask_box", "-1", "0", "8", "8"], ["--mask_box", "-1 is not at least 0"]),
        (["inpaint", "--mask_box", "1", "0", "8"], ["--mask_box", "4 arguments"]),
        (["inpaint", "--mask", "none.png"], ["--mask none.png", "No such file"]),
        (["inpaint", "--mask", "images/digits_final.png"], ["--mask images/digits_final.png", "8x8 pixels, and has"]),
        (["inpaint", *BOX, "--sample_info", "DPMpp_20_0p0"], ["DDPM or DDIM", "not of DPMpp_20_0p0"]),
        (["inpaint", *BOX, "--jump_length", "0"], ["--jump_length", "0 is not at least 1"]),
        (["inpaint", *BOX, "--image_indices", "1500"], ["--image_indices 1500", "1500 pictures"]),
        (["edit", *BOX], ["--mask_box is for --test_mode inpaint, not for edit"]),
        (["edit", "--diffusion_step", "500", "1001"], ["--diffusion_step 1001", "1000 timesteps"]),
        (["edit", "--edit_mode", "ddim", "--sample_info", "DDPM_10_0p0"], ["only DDIM with eta 0 can be inverted"]),
        (["edit", "--image_files", "a.png", "--split", "test"], ["another choice of pictures"]),
        (
            ["interpolate", "--diffusion_step", "300", "500"],
            ["--diffusion_step takes several numbers only for", "edit"],
        ),
        (
            ["interpolate", "--image_files", "images/digits_final.png"],
            ["interpolate takes pairs", "1 is an odd number"],
        ),
        (["evaluate", "--bits", "--sample_info", "DDIM_10_0p0"], ["DDPM in at least 2 steps", "not of DDIM_10_0p0"]),
        (["evaluate", "--bits", "--features", "imagenet"], ["--bits has no samples", "leave out --features"]),
        (["random_gen", "--bits"], ["--bits is for --test_mode evaluate, not for random_gen"]),
        (["compare", "--animate", "gif"], ["--animate is for --test_mode random_gen, interpolate, inpaint, edit"]),
    ],
)
def test_what_cannot_be_done_is_one_line(trained, tmp_path, args, says):
    base = ("--model_path", trained, "--save_dir", tmp_path / "results", "--test_mode")
    refused(in_process("test_solver.py", *base, *args), 2, *says)
    assert not list(tmp_path.rglob("*.png"))


def test_pictures_of_different_sizes_are_fitted_but_no_mask_fits_them(trained, tmp_path):
    for name, size, shade in (("a", (12, 8), 20), ("b", (8, 16), 230)):
        Image.new("L", size, shade).save(tmp_path / f"{name}.png")
    files, few = ("--image_files", tmp_path / "a.png", tmp_path / "b.png"), ("--sample_info", "DDIM_2_0p0")
    sample(trained, tmp_path / "edit", *files, *few, "--diffusion_step", 500, mode="edit")
    table = pixels(pictures(tmp_path / "edit")["digits_DDIM_2_0p0_edit.png"])
    assert (table[10:42, -76:-44] == 20).all() and (table[10:42, -42:-10] == 230).all()
    sample(trained, tmp_path / "between", *files, *few, mode="interpolate")
    row = pixels(pictures(tmp_path / "between")["digits_DDIM_2_0p0_interpolate.png"])[-40:-8]
    assert (row[:, 16:48] == 20).all() and (row[:, -40:-8] == 230).all()
    base = ("--model_path", trained, "--save_dir", tmp_path, "--test_mode", "inpaint")
    refused(in_process("test_solver.py", *base, *BOX, *files), 2, "--image_files: one mask or box", "8x16 and 12x8")


@pytest.mark.slow
def test_the_benchmark_of_inpainting(tmp_path, monkeypatch):
    """RePaint with a trained network errs less than noise replacement alone, also in a fifth of the steps."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("inpainting")
    monkeypatch.setattr(benchmark, "STEPS", 10)
    args = ("--model_path", "checkpoints/digits.safetensors", "--data_path", "none", "--save_dir", tmp_path)
    run = call(benchmark.main, "inpainting.py", *args, "--sample_num", 25)
    assert run.returncode == 0, run.stderr
    errors = [float(text) for text in re.findall(r"in the hole ([\d.]+) ±", run.stdout)]
    assert len(errors) == 4 and errors[3] < min(errors[1:3])
    assert pixels(tmp_path / "digits_inpaint.png").std() > 0
