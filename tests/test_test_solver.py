"""test_solver.py, run as a user runs it: what it draws."""

import csv
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.scripts import ROOT, refused, script
from PIL import Image
from sklearn.datasets import load_digits

import test_solver
from diffusion import GaussianDiffusion
from utils.checkpoint import Run
from utils.device import resolve_precision, sampling_precision
from utils.pictures import FILM_FRAMES, PROGRESS_ROWS, ProgressPicture, jump, progress_frames, step_sizes


def sample(trained, tmp_path, *args, mode="random_gen", **keywords):
    base = ["--model_path", trained, "--test_mode", mode, "--save_dir", tmp_path]
    run = script("test_solver.py", *base, *args, **keywords)
    assert run.returncode == 0, run.stderr
    return run


def pictures(folder):
    """What was written, by its name without the time."""
    return {re.sub(r"^\d{14}_", "", file.name): file for file in folder.iterdir() if file.is_file()}


def pixels(file):
    return np.asarray(Image.open(file))


# --- random_gen ---


def test_random_gen_makes_final_and_progress_pictures(trained, tmp_path):
    sample(trained, tmp_path, "--sample_num", 9, "--sample_info", "DDIM_5_0p0", "DPMpp_7_1p0")
    made = pictures(tmp_path)
    assert sorted(made) == [
        f"digits_{spec}_{what}.png" for spec in ("DDIM_5_0p0", "DPMpp_7_1p0") for what in ("final", "progress")
    ]
    final, progress = (pixels(made[f"digits_DDIM_5_0p0_{what}.png"]) for what in ("final", "progress"))
    assert progress.ndim == 2  # a grey file, as all of its cells are grey
    assert final.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    # The last row of the progress, twice: as x_t and as the predicted x_start. It is the first row of the result.
    for right in (8, 120):  # the gaps and cells of the table
        assert (progress[-44:-8, -104 - right : -right, None] == final[:36]).all()
    sample(trained, tmp_path / "again", "--sample_num", 9, "--sample_info", "DDIM_5_0p0")
    assert (pixels(pictures(tmp_path / "again")["digits_DDIM_5_0p0_final.png"]) == final).all()


def test_a_seed_gives_the_same_samples_in_any_batch(trained, tmp_path):
    args = ["--sample_num", 16, "--sample_info", "DDIM_4_1p0", "--precision", "fp32"]
    for size in (16, 7, 1):
        folder = tmp_path / str(size)
        sample(trained, folder, *args, "--batch_size", size, "--sample_dir", folder / "samples")
    whole = np.stack([pixels(tmp_path / "16" / "samples" / f"{i:06d}.png") for i in range(16)])
    assert whole.shape == (16, 8, 8) and len({picture.tobytes() for picture in whole}) == 16
    for size in (7, 1):
        other = np.stack([pixels(tmp_path / str(size) / "samples" / f"{i:06d}.png") for i in range(16)])
        # One level of 255 where float32's rounding tips a pixel over.
        assert np.abs(whole.astype(int) - other).max() <= 1
    other = tmp_path / "other"
    sample(trained, other, *args, "--seed", 1, "--sample_dir", other / "samples")
    assert not (pixels(other / "samples" / "000000.png") == whole[0]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("args", [[], ["--compile"]])
def test_a_seed_gives_the_same_samples_on_cuda(trained, tmp_path, args):
    for device, extra in (("cpu", []), ("cuda", args)):
        options = ["--sample_num", 10, "--batch_size", 4, "--sample_info", "DPMpp_5_1p0", "--precision", "fp32", *extra]
        sample(trained, tmp_path, "--device", device, "--sample_dir", tmp_path / device, *options)
    ours, theirs = (
        np.stack([pixels(tmp_path / device / f"{i:06d}.png") for i in range(10)]).astype(int)
        for device in ("cpu", "cuda")
    )
    # TF32 convolutions keep ten bits: a few levels of 255 after five steps.
    assert np.abs(ours - theirs).max() <= 12 and np.abs(ours - theirs).mean() < 2


def test_a_stopped_sample_dir_goes_on_and_equals_an_uninterrupted_one(trained, tmp_path):
    args = ["--sample_num", 30, "--sample_info", "DDPM_100_0p0", "--batch_size", 7]
    sample(trained, tmp_path / "a", *args, "--sample_dir", tmp_path / "whole")
    folder = tmp_path / "parts"
    command = [sys.executable, ROOT / "test_solver.py", "--model_path", trained, "--test_mode", "random_gen"]
    command += ["--save_dir", tmp_path / "b", "--sample_dir", folder, *args]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.png"))) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {file.name: file.read_bytes() for file in folder.glob("*.png")}
    assert 7 <= len(left) < 30
    (folder / "000005.png").unlink()  # as if its batch had been cut in the middle
    assert any("final" in name for name in pictures(tmp_path / "b"))  # drawn with the first batch
    sample(trained, tmp_path / "b", *args, "--sample_dir", folder)
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    made = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".part"}  # a kill may leave one
    assert made == whole
    assert len(whole) == 31  # and samples.json
    again = sample(trained, tmp_path / "c", *args, "--sample_dir", folder)
    assert "0 samples to draw" in again.stdout and not pictures(tmp_path / "c")


def test_several_processes_share_a_sample_dir(trained, tmp_path):
    args = ["--sample_num", 20, "--sample_info", "DDIM_3_1p0", "--batch_size", 6]
    sample(trained, tmp_path / "one", *args, "--sample_dir", tmp_path / "whole")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "test_solver.py"]
    command += ["--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path / "two", *args]
    command += ["--sample_dir", tmp_path / "shared"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    files = {file.name: file.read_bytes() for file in (tmp_path / "shared").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert sorted(pictures(tmp_path / "two")) == sorted(pictures(tmp_path / "one"))  # drawn once


def test_a_sample_dir_of_another_run_is_refused_and_left_alone(trained, tmp_path):
    args = ["--sample_num", 4, "--sample_info", "DDIM_2_0p0", "--sample_dir", tmp_path / "d"]
    sample(trained, tmp_path / "r", *args)
    before = {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()}
    base = ["--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path / "r"]
    for other, says in (
        (["--seed", 5], ["seed: was 0, is 5"]),
        (["--weights", "raw"], ["weights: was"]),
        (["--sample_info", "DDIM_3_0p0"], ["sample_info: was DDIM_2_0p0, is DDIM_3_0p0"]),
        (["--sample_num", 3], ["a sample 3", "--sample_num 3"]),
        (["--sample_info", "DDIM_2_0p0", "DDIM_3_0p0"], ["one --sample_info"]),
    ):
        refused(script("test_solver.py", *base, *args, *other), 2, *says)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"mine")
    refused(script("test_solver.py", *base, *args, "--sample_dir", tmp_path / "mine"), 2, "mine holds files", "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "samples.json").write_text("{")
    refused(script("test_solver.py", *base, *args, "--sample_dir", tmp_path / "broken"), 2, "samples.json is damaged")
    assert {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()} == before
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["holiday.png"]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_film_on_request(trained, tmp_path, kind):
    sample(trained, tmp_path, "--sample_num", 4, "--sample_info", "DDIM_10_0p0", "--animate", kind)
    made = pictures(tmp_path)
    film = Image.open(made[f"digits_DDIM_10_0p0_progress.{kind}"])
    assert (
        film.format == kind.upper()
        and film.n_frames == len(progress_frames(10, FILM_FRAMES))
        and film.info["loop"] == 0
    )
    film.seek(film.n_frames - 1)
    last = np.asarray(film.convert("RGB")).astype(int)
    # WebP without loss; a GIF has 256 colours, and here only greys.
    assert np.abs(last - pixels(made["digits_DDIM_10_0p0_final.png"])).max() <= 1


def test_sampling_keeps_only_the_frames_that_are_shown(tmp_path, monkeypatch):
    """random_gen itself, 100 pictures of 32x32 in 1000 steps: big tensors are counted all along the way."""
    recipe = {"image_size": 32, "image_channel": 1, "timestep_num": 1000, "sample_num": 100}
    recipe |= {"beta_schedule": "cosine", "objective": "pred_noise"}
    run = Run(torch.nn.Identity(), GaussianDiffusion(1000), recipe, 0, "raw")
    alive, watched = [], []

    def network(x, t):
        if t[0] % 100 == 50:
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            alive.append(sum(o.shape[1:] == (1, 32, 32) for o in tensors))  # batches, and rows of the picture
        return x * 0.5

    class Watched(ProgressPicture):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            watched.append(self)

    monkeypatch.setattr(test_solver, "load_run", lambda *args, **given: run)
    monkeypatch.setattr("utils.checkpoint.ready_to_sample", lambda *args: network)
    monkeypatch.setattr(test_solver, "ProgressPicture", Watched)
    args = ["--model_path", "x.pt", "--test_mode", "random_gen", "--sample_info", "DDPM_1000_0p0"]
    monkeypatch.setattr(sys, "argv", ["test_solver.py", *args, "--save_dir", str(tmp_path)])
    test_solver.main()
    assert len(alive) == 10 and max(alive) - min(alive) <= 1 and max(alive) <= 8, alive  # however far it has come
    (progress,) = watched
    assert len(progress.cells) == len(progress_frames(1000, PROGRESS_ROWS)) == 10
    assert {cell.size for row in progress.cells for cell in row} == {(342, 36)}  # pictures of a row, no tensors


def test_noise_is_predicted_in_full_precision_unless_told_otherwise():
    cpu = torch.device("cpu")
    assert sampling_precision("auto", cpu, "pred_noise") == "fp32"
    assert sampling_precision("bf16", cpu, "pred_noise") == "bf16"
    for objective in ("pred_x0", "pred_v"):
        assert sampling_precision("auto", cpu, objective) == resolve_precision("auto", cpu)


# --- compare ---


def test_compare_makes_one_table_and_a_csv(trained, tmp_path):
    specs = [
        "DDPM_5_0p0",
        "NaiveDDPM_5_0p0",
        "DDIM_5_0p0",
        "DDIM_3_0p0",
        "DDIM_2_0p0",
        "DDIM_2_1p0",
        "DPMpp_2_0p0_quad",
    ]
    sample(trained, tmp_path, "--sample_info", *specs, "--sample_num", 4, mode="compare")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_compare.csv", "digits_compare.png"]
    rows = list(csv.DictReader(made["digits_compare.csv"].open()))
    assert [row["sample_info"] for row in rows] == specs
    assert [row["steps"] for row in rows] == ["5", "5", "5", "3", "2", "2", "2"]
    assert all(float(row["seconds_per_image"]) > 0 and row["images"] == "4" for row in rows)
    assert rows[0]["device"].startswith(("cpu", "cuda")) and rows[0]["precision"] in ("fp32", "bf16")
    sample(trained, tmp_path / "alone", "--sample_info", "DDIM_5_0p0", "--sample_num", 4)
    final = pixels(pictures(tmp_path / "alone")["digits_DDIM_5_0p0_final.png"])
    table = pixels(made["digits_compare.png"])
    side, height = len(final), len(final) + 8 + 18  # a row's height: the cell, a gap and the note
    cells = {
        (r, c): table[26 + r * height :][:side, -(3 - c) * (side + 8) :][:, :side] for r in range(5) for c in range(3)
    }
    assert (cells[2, 2][..., None] == final).all()  # the same noise; methods down, steps across
    assert (cells[0, 0] == 255).all() and (cells[4, 1] == 255).all()  # what was not asked for stays empty


# --- interpolate ---


def test_interpolate_makes_thirteen_rows_between_real_pictures(trained, tmp_path):
    sample(trained, tmp_path, "--sample_info", "DDIM_4_0p0", "--sample_num", 16, mode="interpolate")
    made = pictures(tmp_path)
    assert sorted(made) == ["digits_DDIM_4_0p0_interpolate.png", "digits_DDIM_4_0p0_smoothness.png"]
    picture = pixels(made["digits_DDIM_4_0p0_interpolate.png"])
    assert picture.shape == (13 * 34 + 2, 4 * 34 + 2, 3)
    cells = [picture[2 + 34 * row : 34 * row + 34, 2:34] for row in (0, 12)]  # 8x8 pixels, each enlarged to 4x4
    digits = {(d / 16 * 255).round().astype(np.uint8).tobytes() for d in load_digits().images}
    assert all(np.ascontiguousarray(cell[::4, ::4, 0]).tobytes() in digits for cell in cells)


def test_every_mode_in_one_call_and_in_one_plot(trained, tmp_path):
    modes = ["lerp", "slerp", "ddim", "redrawn"]
    args = ["--interp_mode", *modes, "--lambda_num", 4, "--image_indices", 3, 7, 0, 1499, "--diffusion_step", 300]
    run = sample(trained, tmp_path, "--sample_info", "DDIM_10_0p0", *args, mode="interpolate")
    names = ["digits_DDIM_10_0p0_interpolate.png"] + [f"digits_DDIM_10_0p0_{m}_interpolate.png" for m in modes[1:]]
    assert sorted(pictures(tmp_path)) == sorted([*names, "digits_DDIM_10_0p0_smoothness.png"])
    for mode in modes:
        assert re.search(rf"^{mode} DDIM_10_0p0: largest step [\d.]+ times the mean; MSE .* [\d.]+", run.stdout, re.M)
    digits = (load_digits().images / 16 * 255).round().astype(np.uint8)
    for name in names:
        picture = pixels(pictures(tmp_path)[name])
        assert picture.shape == (6 * 34 + 2, 2 * 34 + 2, 3)
        for (row, column), index in {(0, 0): 3, (5, 0): 7, (0, 1): 0, (5, 1): 1499}.items():
            cell = picture[2 + 34 * row :, 2 + 34 * column :][:32:4, :32:4, 0]
            assert (cell == digits[index]).all()


def test_two_picture_files_are_a_pair(trained, tmp_path):
    for name, shade in (("a", 20), ("b", 230)):
        Image.new("RGB", (50, 40), (shade,) * 3).save(tmp_path / f"{name}.png")
    files = ["--image_files", tmp_path / "a.png", tmp_path / "b.png"]
    sample(trained, tmp_path / "r", *files, "--sample_info", "DDIM_2_0p0", mode="interpolate")
    picture = pixels(pictures(tmp_path / "r")["digits_DDIM_2_0p0_interpolate.png"])
    assert picture.shape == (13 * 34 + 2, 36, 3)
    assert (picture[2:34, 2:34] == 20).all() and (picture[-34:-2, 2:34] == 230).all()


def test_jumps_are_measured():
    even = [torch.full((2, 1, 2, 2), i / 10) for i in range(11)]
    # 0.1 in float32.
    torch.testing.assert_close(step_sizes(even), torch.full((10, 2), 0.1), rtol=0, atol=1e-6)
    assert jump(step_sizes(even)) == pytest.approx(1, abs=1e-5)
    once = [torch.zeros(2, 1, 2, 2)] * 5 + [torch.ones(2, 1, 2, 2)] * 6
    assert jump(step_sizes(once)) == pytest.approx(10)


def test_samples_json_says_what_the_samples_are(trained, tmp_path):
    sample(trained, tmp_path, "--sample_num", 1, "--sample_info", "DDIM_1_0p0", "--sample_dir", tmp_path / "d")
    content = json.loads((tmp_path / "d" / "samples.json").read_text())
    assert (content["sample_info"], content["seed"], content["timestep_num"]) == ("DDIM_1_0p0", 0, 1000)
    assert re.fullmatch(r"[0-9a-f]{64}", content["weights"])
