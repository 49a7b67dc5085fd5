"""train_solver.py: what a run leaves, that it resumes exactly, and train() as a function."""

import re
import shutil
import signal
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import yaml
from helpers.scripts import ROOT, TINY, script, state_hash, tiny, train
from PIL import Image

import train_solver
import training.speed
from files.errors import CheckpointError
from runs.config import load_recipe
from runs.network import build
from runs.run import load_run
from training.processes import Processes


def test_training_leaves_checkpoints_recipe_and_preview(trained):
    assert sorted(f.name for f in trained.parent.iterdir() if f.name != "tensorboard") == [
        ".lock", "digits.1.pt", "digits.pt", "loss.png", "metrics.jsonl", "preview_00000006.png", "recipe.yaml",
    ]  # fmt: skip
    run = load_run(trained)
    assert run.step == 6 and run.recipe == yaml.safe_load((trained.parent / "recipe.yaml").read_text())
    assert not run.model.training and run.diffusion.objective == "pred_v"
    raw = load_run(trained, weights="raw").model.state_dict()
    assert any(not torch.equal(w, raw[name]) for name, w in run.model.state_dict().items())
    assert Image.open(trained.parent / "preview_00000006.png").size == (3 * 34 + 2, 3 * 34 + 2)


@pytest.mark.slow
def test_the_command_line_trains_to_the_same_state(trained, tmp_path):
    run = script("train_solver.py", *tiny(tmp_path, num_workers=2))  # which must not keep it from ending
    assert run.returncode == 0, run.stderr
    assert re.search(r"48 images in \d+ s, [\d.]+ images/s on (cpu|cuda)", run.stdout)
    assert "held out loss" in run.stdout + run.stderr
    assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(trained)


@pytest.mark.slow
def test_a_run_in_two_parts_equals_one_in_one(trained, tmp_path):
    assert train(tmp_path, settings={"max_steps": 4}).returncode == 0  # stops between two saves, in mid-epoch
    second = train(tmp_path, settings={"preview_info": "DDIM_3_0p0"}, whole=True)
    assert second.returncode == 0 and "resuming from step 4" in second.stdout
    for says in ("max_steps: was 4, is 6", "preview_info: was 'DDIM_2_0p0', is 'DDIM_3_0p0'"):
        assert says in second.stdout
    assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(trained)
    pictures = [tmp_path / "digits" / name for name in ("preview_00000006.png", "loss.png")]
    for picture in pictures:
        picture.unlink()  # as if it had been killed before they were drawn
    third = train(tmp_path, settings={"preview_info": "DDIM_3_0p0"}, whole=True)
    assert third.returncode == 0 and "holds 6 steps, and 6 were asked for" in third.stdout
    assert all(picture.exists() for picture in pictures)


RANDOM = {"gradient_accumulation": 2, "dropout": 0.1, "horizontal_flip": "true", "lr_schedule": "cosine"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"optimizer": "muon"}, RANDOM], ids=["muon", "adam"])
def test_max_minutes_become_a_number_of_steps_and_nothing_else_changes(tmp_path, monkeypatch, settings):
    """It ends in the state of a training with this max_steps, in one part or two; the speed is measured once."""
    measured, original = [], training.speed.steps_per_minute

    def trial(*args):
        measured.append(original(*args))
        return 1200.0

    monkeypatch.setattr(train_solver, "steps_per_minute", trial)
    times = settings | {"max_steps": "null", "max_minutes": 0.005, "save_every": 2}
    assert train(tmp_path / "steps", settings=settings | {"max_steps": 6}).returncode == 0 and not measured
    assert train(tmp_path / "whole", settings=times).returncode == 0 and measured[0] > 0
    files = [tmp_path / name / "digits" / "digits.pt" for name in ("steps", "whole", "parts")]
    expected, recipe = state_hash(files[0]), load_run(files[1]).recipe
    assert state_hash(files[1]) == expected and recipe["steps_per_minute"] == 1200 and recipe["max_steps"] is None

    files[2].parent.mkdir(parents=True)
    shutil.copy(files[1].with_name("digits.1.pt"), files[2])  # as if it had been killed after step 4
    again = train(tmp_path / "parts", settings=times)
    assert again.returncode == 0 and "resuming from step 4" in again.stdout
    assert "steps_per_minute: was" not in again.stdout
    assert state_hash(files[2]) == expected and len(measured) == 1
    assert load_run(files[2]).recipe == recipe | {"save_dir": str(tmp_path / "parts")}


@pytest.mark.slow
def test_train_holds_its_folder_until_its_caller_exits(trained, tmp_path, capsys):
    """train() with the arguments that main passes it ends in the state of the command line's run."""
    overrides = [f"{key}={value}" for key, value in TINY.items()]
    recipe = load_recipe(ROOT / "config.yaml", "Digits", overrides, {"save_dir": str(tmp_path)})
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with Processes(torch.device("cpu")) as processes, ExitStack() as until_exit:

        def once_more(resume, stack):
            torch.manual_seed(recipe["seed"])
            train_solver.train(recipe, *build(recipe), processes, resume, stack)

        once_more("never", until_exit)  # "never" begins a run where there is none
        assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(trained)
        assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] != handlers
        with ExitStack() as other, pytest.raises(CheckpointError, match="another training is running"):
            once_more("auto", other)
        until_exit.close()
        assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers
        with ExitStack() as other:
            once_more("auto", other)
        assert "holds 6 steps, and 6 were asked for" in capsys.readouterr().out
        with ExitStack() as other, pytest.raises(CheckpointError, match="would be overwritten"):
            once_more("never", other)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    run = train(tmp_path / "runs", "--dry_run", "--data_path", tmp_path / "none", data_name="Cifar10")
    assert run.returncode == 0 and not list(tmp_path.iterdir())
    for text in ("data_name: Cifar10", "(8, 3, 32, 32)", "parameters", "memory", "not found yet", "steps       6"):
        assert text in run.stdout


def test_a_folder_of_your_own_pictures_trains(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "notes.txt").write_text("no picture")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    (tmp_path / "config.yaml").write_text(
        f"{{Train_Setting: {{}}, Train_Data: {{Mine: {{data_path: {pictures}, image_size: 16}}}}}}"
    )
    (pictures / "also").mkdir()
    (pictures / "also" / "12.png").write_bytes((pictures / "11.png").read_bytes())
    settings = {"num_classes": "auto"}  # so that the pictures are looked for twice
    run = train(tmp_path / "runs", "--config", tmp_path / "config.yaml", data_name="Mine", settings=settings)
    assert run.returncode == 0, run.stderr
    assert "images      13" in run.stdout and run.stderr.count("1 files were not opened: 1 .txt") == 1
    assert load_run(tmp_path / "runs" / "mine" / "mine.pt").recipe["image_channel"] == 3
