"""Both scripts, run as a user runs them: what they make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from solvers import ROOT, script, train

from utils.checkpoint import load_run


def test_training_leaves_checkpoints_recipe_and_preview(trained):
    assert sorted(f.name for f in trained.parent.iterdir()) == [
        "digits.1.pt", "digits.pt", "preview_00000006.png", "recipe.yaml",
    ]  # fmt: skip
    run = load_run(trained)
    assert run.step == 6 and run.recipe == yaml.safe_load((trained.parent / "recipe.yaml").read_text())
    assert not run.model.training and run.diffusion.objective == "pred_v"
    raw = load_run(trained, weights="raw").model.state_dict()
    assert any(not torch.equal(w, raw[name]) for name, w in run.model.state_dict().items())
    assert Image.open(trained.parent / "preview_00000006.png").size == (3 * 34 + 2, 3 * 34 + 2)


def test_a_run_in_two_parts_equals_one_in_one(trained, tmp_path):
    assert train(tmp_path, settings={"max_steps": 4}).returncode == 0  # stops between two saves, in mid-epoch
    second = train(tmp_path, settings={"preview_info": "DDIM_3_0p0"})
    assert second.returncode == 0 and "going on from step 4" in second.stdout
    parts, whole = (torch.load(f, weights_only=True) for f in (tmp_path / "digits" / "digits.pt", trained))
    for key in ("model", "ema"):
        assert all(torch.equal(w, whole[key][name]) for name, w in parts[key].items())
    for index, state in parts["optimizer"]["state"].items():
        assert all(torch.equal(value, whole["optimizer"]["state"][index][name]) for name, value in state.items())
    third = train(tmp_path, settings={"preview_info": "DDIM_3_0p0"})
    assert third.returncode == 0 and "has done all of its 6 steps" in third.stdout


def test_dry_run_says_what_would_be_and_writes_nothing(tmp_path):
    run = train(tmp_path / "runs", "--dry_run", "--data_path", tmp_path / "none", data_name="Cifar10")
    assert run.returncode == 0 and not list(tmp_path.iterdir())
    for text in (
        "data_name: Cifar10",
        "batch       (8, 3, 32, 32)",
        "parameters",
        "memory",
        "not here yet",
        "steps       6",
    ):
        assert text in run.stdout


def test_a_folder_of_ones_own_pictures_trains(tmp_path):
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "config.yaml").write_text(
        f"{{Train_Setting: {{}}, Train_Data: {{Mine: {{data_path: {tmp_path}, image_size: 16}}}}}}"
    )
    run = train(tmp_path / "runs", "--config", tmp_path / "config.yaml", data_name="Mine")
    assert run.returncode == 0, run.stderr
    assert "12" in run.stdout and "1 of 13 files" in run.stderr and "config.yaml" in run.stderr
    assert load_run(tmp_path / "runs" / "mine" / "mine.pt").recipe["image_channel"] == 3


def test_random_gen_makes_final_and_progress_pictures(trained, tmp_path):
    args = ["--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path, "--sample_num", 9]
    run = script("test_solver.py", *args, "--sample_info", "DDIM_5_0p0", "DDPM_7_0p0")
    assert run.returncode == 0, run.stderr
    pictures = {re.sub(r"^\d{14}_", "", f.name): np.asarray(Image.open(f)) for f in tmp_path.iterdir()}
    assert sorted(pictures) == [
        f"digits_{spec}_{what}.png" for spec in ("DDIM_5_0p0", "DDPM_7_0p0") for what in ("final", "progress")
    ]
    final, progress = pictures["digits_DDIM_5_0p0_final.png"], pictures["digits_DDIM_5_0p0_progress.png"]
    assert final.shape == progress.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    assert (final[:34] == progress[-36:-2]).all()  # the last row of the progress is the first row of the result
    assert (progress[:34] == pictures["digits_DDPM_7_0p0_progress.png"][:34]).all()  # from the same noise
    again = script("test_solver.py", *args, "--sample_info", "DDIM_5_0p0", "--save_dir", tmp_path / "again")
    assert again.returncode == 0
    (same,) = (tmp_path / "again").glob("*_final.png")
    assert (np.asarray(Image.open(same)) == final).all()


def test_interpolate_makes_thirteen_rows_between_real_pictures(trained, tmp_path):
    args = ["--model_path", trained, "--test_mode", "interpolate", "--save_dir", tmp_path, "--sample_num", 16]
    run = script("test_solver.py", *args, "--sample_info", "DDIM_4_0p0")
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("*_digits_DDIM_4_0p0_interpolate.png")
    picture = np.asarray(Image.open(file))
    assert picture.shape == (13 * 34 + 2, 4 * 34 + 2, 3)
    cells = [picture[2 + 34 * row : 34 * row + 34, 2:34] for row in (0, 12)]  # 8x8 pixels, each enlarged to 4x4
    digits = {(d / 16 * 255).round().astype(np.uint8).tobytes() for d in load_digits().images}
    assert all(np.ascontiguousarray(cell[::4, ::4, 0]).tobytes() in digits for cell in cells)


def test_run_test_sh_runs(trained, tmp_path):
    text = (ROOT / "run_test.sh").read_text().replace("DDPM_1000", "DDPM_3").replace("DDPM_100", "DDPM_2")
    (tmp_path / "run_test.sh").write_text(text.replace("SAVE_DIR=results", f"SAVE_DIR={tmp_path}/pictures"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MODEL_PATH": str(trained), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", tmp_path / "run_test.sh"], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "pictures").iterdir())) == 5
