"""Both scripts, run as a user runs them: what they make."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from helpers.scripts import ROOT, state_hash, train
from PIL import Image

from utils.checkpoint import load_run


def test_training_leaves_checkpoints_recipe_and_preview(trained):
    assert sorted(f.name for f in trained.parent.iterdir() if f.name != "tensorboard") == [
        "digits.1.pt", "digits.pt", "loss.png", "metrics.jsonl", "preview_00000006.png", "recipe.yaml",
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
    assert second.returncode == 0 and "resuming from step 4" in second.stdout
    assert "max_steps: was 4, is 6" in second.stdout and "preview_info: was DDIM_2_0p0, is DDIM_3_0p0" in second.stdout
    assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(trained)
    pictures = [tmp_path / "digits" / name for name in ("preview_00000006.png", "loss.png")]
    for picture in pictures:
        picture.unlink()  # as if it had been killed before they were drawn
    third = train(tmp_path, settings={"preview_info": "DDIM_3_0p0"})
    assert third.returncode == 0 and "has done all of its 6 steps" in third.stdout
    assert all(picture.exists() for picture in pictures)


def test_dry_run_says_what_would_be_and_writes_nothing(tmp_path):
    run = train(tmp_path / "runs", "--dry_run", "--data_path", tmp_path / "none", data_name="Cifar10")
    assert run.returncode == 0 and not list(tmp_path.iterdir())
    for text in (
        "data_name: Cifar10",
        "batch       (8, 3, 32, 32)",
        "parameters",
        "memory",
        "not found yet",
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


def test_run_test_sh_runs(trained, tmp_path):
    text = (ROOT / "run_test.sh").read_text()
    for slow, quick in (("DDPM_100", "DDPM_3"), ("_{10,20,50}_", "_{2,4}_"), ("_50_", "_4_"), ("_num 300", "_num 60")):
        assert slow in text
        text = text.replace(slow, quick)
    (tmp_path / "run_test.sh").write_text(text.replace("SAVE_DIR=results", f"SAVE_DIR={tmp_path}/pictures"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MODEL_PATH": str(trained), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", tmp_path / "run_test.sh"], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4 + 1 + 2 + 5 + 1
    assert len(list((tmp_path / "pictures").iterdir())) == 13 + 2  # compare's CSV, evaluate's JSON
