"""Resuming a run: the lock on its folder, which checkpoint it finds, and that the state fits."""

import copy
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.checkpoints import content
from helpers.systems import linux
from torch import nn

from files.atomic import part_of
from files.errors import CheckpointError, ConfigError
from runs.checkpoint import save_checkpoint
from runs.config import load_recipe
from runs.recipe import plain_recipe
from training.background import Background
from training.optimizer import UNSCALED, backward, make_optimizer, update
from training.processes import Processes
from training.resume import (
    TrainingState,
    alone_in,
    find_checkpoint,
    fingerprint,
    pretrained_recipe,
    save_recipe,
    say_rate,
)

CONFIG = Path(__file__).parent.parent / "config.yaml"
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), np.uint8)
CPU = torch.device("cpu")
RECIPE = {"optimizer": "adam", "learning_rate": 0.01, "Adam_beta1": 0.9, "Adam_beta2": 0.99}


# --- which checkpoint ---


def test_all_damaged_checkpoints_are_an_error_and_not_a_new_start(tmp_path):
    file = tmp_path / "x.pt"
    for step in (1, 2):
        save_checkpoint(file, content(step), keep=2)
    file.write_bytes(file.read_bytes()[:-50])
    file.with_name("x.1.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        find_checkpoint(file, "auto")


def test_a_newer_format_is_never_replaced_by_an_older_file(tmp_path):
    file = tmp_path / "x.pt"
    save_checkpoint(file, content(1), keep=2)
    save_checkpoint(file, content(2) | {"format": 2}, keep=2)
    with pytest.raises(CheckpointError, match="format 2"):
        find_checkpoint(file, "auto")
    with pytest.raises(CheckpointError, match=r"x\.pt exists and would be overwritten"):
        find_checkpoint(file, "never")


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path / "x.pt", "auto") is None
    assert find_checkpoint(tmp_path / "x.pt", "never") is None


def test_only_one_training_at_a_time_uses_a_folder(tmp_path):
    left, young, foreign = part_of(tmp_path / "x.pt"), part_of(tmp_path / "x.pt"), tmp_path / "user.part"
    for file in (left, young, foreign):
        file.touch()
    for file in (left, foreign):
        os.utime(file, (0, 0))  # left by a training that was killed long ago
    with alone_in(tmp_path):
        assert not left.exists() and young.exists() and foreign.exists()
        with pytest.raises(CheckpointError, match=f"another training is running in {tmp_path}"):
            with alone_in(tmp_path):
                pass
    with alone_in(tmp_path):
        pass


@linux
def test_the_lock_ends_with_its_process_however_that_dies(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with alone_in(tmp_path):
            os.write(writer, b"!")
            signal.pause()
    os.read(reader, 1)
    with pytest.raises(CheckpointError, match="another training is running"), alone_in(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with alone_in(tmp_path):
        pass


# --- the recipe that a run with init_from starts from ---


def test_a_run_that_has_begun_keeps_its_own_recipe(tmp_path):
    recipe = load_recipe(CONFIG, "Digits", flags={"save_dir": str(tmp_path), "init_from": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        pretrained_recipe(recipe)
    saved = tmp_path / "digits" / "recipe.yaml"
    saved.parent.mkdir()
    save_recipe(saved, recipe | {"model_channels": 48})
    assert [file.name for file in saved.parent.iterdir()] == ["recipe.yaml"]
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):  # there is no checkpoint yet
        pretrained_recipe(recipe)
    (saved.parent / "digits.1.pt").touch()
    assert pretrained_recipe(recipe) == recipe | {"model_channels": 48}
    moved = recipe | {"init_from": "elsewhere/gone.safetensors"}
    assert pretrained_recipe(moved) == pretrained_recipe(recipe)
    with pytest.raises(CheckpointError, match=r"other\.safetensors does not exist"):
        pretrained_recipe(recipe | {"init_from": "other.safetensors"})
    saved.write_text("{model_channels: 4")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is damaged"):
        pretrained_recipe(recipe)


# --- the state ---


def trained(layout=torch.contiguous_format, kind="adam"):
    """A network and its optimizer before their first step."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 8, 3).to(memory_format=layout)
    return model, make_optimizer(model, RECIPE | {"optimizer": kind})


def step(model, optimizer):
    optimizer.zero_grad()
    backward(model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).square().mean())
    update(optimizer, 0.01, None)


def saved(model, optimizer):
    """What a checkpoint after five steps would hold."""
    weights = model.state_dict()
    return copy.deepcopy({"step": 5, "model": weights, "ema": weights, "optimizer": optimizer.state_dict()})


def state_of(model, optimizer, images=IMAGES):
    ema, processes = SimpleNamespace(model=nn.Conv2d(3, 8, 3)), Processes(CPU)
    recipe, known = plain_recipe("X"), {"ema": ema, "scaler": UNSCALED, "processes": processes}
    step = SimpleNamespace(recipe=recipe, model=model, optimizer=optimizer, **known)
    return TrainingState(Path("x"), step, images, Background(threaded=False))


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_checkpoint_of_another_memory_layout_continues_in_the_same_way(kind):
    (here, optimizer), (there, other) = trained(torch.channels_last, kind), trained(kind=kind)
    for _ in range(5):
        step(here, optimizer)
    assert state_of(there, other).restore(saved(here, optimizer)) == 5
    step(here, optimizer)
    step(there, other)
    assert other.state[there.weight]["exp_avg"].is_contiguous()
    torch.testing.assert_close(there.state_dict(), here.state_dict())  # convolutions sum in another order


def test_the_settings_of_the_optimizer_come_from_the_recipe_and_not_from_the_checkpoint():
    model, optimizer = trained()
    step(model, optimizer)
    old = saved(model, optimizer)
    old["optimizer"]["param_groups"][0]["betas"] = (0.1, 0.2)
    model, optimizer = trained()
    state_of(model, optimizer).restore(old)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99) and optimizer.state[model.weight]["step"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        "no state", "an empty state", "half a state", "no moments", "another shape", "a shape that broadcasts",
        "another network",
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused(damage):
    model, optimizer = trained()
    step(model, optimizer)
    old = saved(model, optimizer)
    moments = old["optimizer"]["state"][0]
    if damage == "no state":
        del old["optimizer"]["state"]
    elif damage == "an empty state":
        old["optimizer"]["state"] = {}
    elif damage == "half a state":
        del old["optimizer"]["state"][1]
    elif damage == "no moments":
        del moments["exp_avg"]
    elif damage == "another shape":
        moments["exp_avg"] = torch.zeros(5, 7)
    elif damage == "a shape that broadcasts":
        moments["exp_avg"] = torch.zeros(1)
    else:
        old["ema"] = nn.Conv2d(3, 4, 3).state_dict()
    with pytest.raises(CheckpointError, match="the checkpoint"):
        state_of(*trained()).restore(old)


def test_other_numbers_of_pictures_and_processes_are_reported(capsys):
    model, optimizer = trained()
    step(model, optimizer)
    content = saved(model, optimizer) | {"images": 7, "processes": 1}
    state_of(*trained()).restore(content)
    printed = capsys.readouterr().out
    assert "images: was 7, is 9" in printed and "processes" not in printed and "step 5" in printed
    assert "pictures" not in printed  # a checkpoint of an earlier version does not know them
    same, other = fingerprint(IMAGES.copy()), fingerprint(IMAGES[::-1])
    state_of(*trained()).restore(content | {"images": 9, "pictures": same})
    assert "pictures" not in capsys.readouterr().out
    state_of(*trained()).restore(content | {"images": 9, "pictures": other})
    assert f"pictures: was {other}, is {same}" in capsys.readouterr().out


def test_a_longer_cosine_says_how_the_rate_jumps(capsys):
    old = load_recipe(CONFIG, "Digits", ["lr_schedule=cosine", "max_steps=100", "learning_rate=1e-3"])
    say_rate({"step": 90, "recipe": old}, old, 100, 23)
    say_rate({"step": 100, "recipe": old}, old | {"warmup_steps": 200}, 100, 23)  # at its end, all of it warm-up
    assert not capsys.readouterr().out
    say_rate({"step": 90, "recipe": old}, old | {"max_steps": 1000}, 1000, 23)
    # half a cosine at 0.9 and at 0.09 of the way: 0.5 (1 + cos 0.9 π) = 0.0245 and 0.980 of 1e-3
    assert "was 2.4e-05 at step 90, is 0.00098" in capsys.readouterr().out
