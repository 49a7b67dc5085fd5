"""Resuming a run: the lock on its folder, which checkpoint it finds, and that the state fits."""

import copy
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.checkpoints import content
from helpers.systems import linux
from torch import nn

from files.atomic import part_of
from files.errors import CheckpointError, ConfigError
from runs.checkpoint import save_checkpoint
from runs.config import load_recipe
from runs.pretrained import pretrained_recipe
from runs.recipe import plain_recipe
from runs.run import load_run
from training.optimizer import UNSCALED, backward, make_optimizer, update
from training.processes import Processes
from training.resume import TrainingState, alone_in, find_checkpoint, fingerprint

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


def test_a_run_that_has_begun_goes_on_without_the_weights_that_it_began_with(tmp_path):
    recipe = load_recipe(CONFIG, "Digits", flags={"save_dir": str(tmp_path), "init_from": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        pretrained_recipe(recipe)
    saved = tmp_path / "digits" / "recipe.yaml"
    saved.parent.mkdir()
    saved.write_text(yaml.safe_dump(recipe | {"model_channels": 48}))
    assert pretrained_recipe(recipe) == recipe | {"model_channels": 48}
    saved.write_text("a: [")
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        pretrained_recipe(recipe)
    shipped = CONFIG.with_name("checkpoints") / "digits.safetensors"
    assert pretrained_recipe(recipe | {"init_from": str(shipped)}) == load_run(shipped).recipe  # the file is there


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
    state = {"model": weights, "ema": weights, "optimizer": optimizer.state_dict()}
    return copy.deepcopy({"step": 5, "recipe": plain_recipe("X")} | state)


def state_of(model, optimizer, images=IMAGES):
    ema, processes = SimpleNamespace(model=nn.Conv2d(3, 8, 3)), Processes(CPU)
    recipe, known = plain_recipe("X"), {"ema": ema, "scaler": UNSCALED, "processes": processes, "way": {}}
    known |= {"optimizers": [optimizer], "critic": None}
    step = SimpleNamespace(recipe=recipe, model=model, optimizer=optimizer, **known)
    return TrainingState(Path("x"), step, images, ExitStack())


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_checkpoint_of_another_memory_layout_continues_in_the_same_way(kind):
    (here, optimizer), (there, other) = trained(torch.channels_last, kind), trained(kind=kind)
    for _ in range(5):
        step(here, optimizer)
    assert state_of(there, other).restore(saved(here, optimizer), 9) == 5
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
    state_of(model, optimizer).restore(old, 9)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99) and optimizer.state[model.weight]["step"] == 1


def test_other_numbers_of_pictures_and_processes_are_reported(capsys):
    model, optimizer = trained()
    step(model, optimizer)
    content = saved(model, optimizer) | {"images": 7, "processes": 1}
    state_of(*trained()).restore(content, 9)
    printed = capsys.readouterr().out
    assert "images: was 7, is 9" in printed and "processes" not in printed and "step 5" in printed
    assert "pictures" not in printed  # a checkpoint of an earlier version does not know them
    same, other = fingerprint(IMAGES.copy()), fingerprint(IMAGES[::-1])
    state_of(*trained()).restore(content | {"images": 9, "pictures": same}, 9)
    assert "pictures" not in capsys.readouterr().out
    state_of(*trained()).restore(content | {"images": 9, "pictures": other}, 9)
    assert f"pictures: was {other}, is {same}" in capsys.readouterr().out


def test_a_learning_rate_that_the_new_length_changes_is_printed(capsys):
    """The sixth step of a cosine to 0 in n steps has (1 + cos(5/n pi)) / 2 of the rate."""
    model, optimizer = trained()
    step(model, optimizer)
    for steps, says in ((12, "learning rate: was 6.7e-06 at step 5, is 6.3e-05"), (6, "resuming")):
        old, new = (plain_recipe("X", lr_schedule="cosine", max_steps=length) for length in (6, steps))
        state = state_of(*trained())
        state.step.recipe = new
        state.restore(saved(model, optimizer) | {"recipe": old}, 9)
        printed = capsys.readouterr().out
        assert says in printed and ("learning rate" in printed) == (steps == 12)
