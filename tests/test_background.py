"""Checkpoints written beside the training, as on a GPU: the same promises. (Here the thread is asked for on a CPU.)"""

import os
import signal
import threading
import time

import pytest
import torch
from helpers.scripts import forked, on_a_full_disk, refused, state_hash, train
from helpers.systems import linux

import train_solver
import training.resume
from files.errors import CheckpointError
from runs.checkpoint import load_checkpoint, save_checkpoint
from training.background import Background, copied
from training.preview import Preview
from training.resume import alone_in


@pytest.fixture
def beside(monkeypatch):
    """Trainings write in a thread: beside(write) puts write(file, content, keep) in place of what writes."""
    monkeypatch.setattr(training.resume, "Background", lambda threaded: Background(threaded=True))
    return lambda write: monkeypatch.setattr(training.resume, "save_checkpoint", write)


def slow(file, content, keep):
    time.sleep(0.3)
    save_checkpoint(file, content, keep)


def test_jobs_run_one_after_the_other_and_their_errors_arrive():
    done, release = [], threading.Event()
    with Background(threaded=True) as background:
        background.start(lambda: (release.wait(10), done.append(1)))
        assert not done
        release.set()
        background.start(lambda: done.append(2) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            background.wait()
        background.wait()  # once
        background.start(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            background.start(lambda: done.append("not run"))
        background.start(lambda: (time.sleep(0.1), done.append(3)))
    assert done == [1, 2, 3]
    with pytest.raises(ZeroDivisionError), Background(threaded=True) as background:
        background.start(lambda: 1 / 0)
    with pytest.raises(KeyError), Background(threaded=True) as background:  # the first error is the one to report
        background.start(lambda: 1 / 0)
        raise KeyError
    with Background(threaded=False) as background, pytest.raises(ZeroDivisionError):
        background.start(lambda: 1 / 0)


def test_a_copy_stays_as_it_is():
    weight = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    content = {"step": 3, "model": {"w": weight}, "state": {0: {"step": torch.tensor(1.0)}}}
    copy = copied(content)
    weight.zero_()
    assert copy["model"]["w"].min() == 1 and copy["step"] == 3 and copy["state"][0]["step"] == 1
    assert copy["model"]["w"].is_contiguous(memory_format=torch.channels_last)


def test_each_checkpoint_is_the_one_that_a_training_without_a_thread_writes(trained, tmp_path, beside):
    beside(slow)
    assert train(tmp_path).returncode == 0
    for name in ("digits.pt", "digits.1.pt"):  # of steps 6 and 3; steps 4 and 5 were computed meanwhile
        assert state_hash(tmp_path / "digits" / name) == state_hash(trained.with_name(name))


def test_killed_while_it_writes_it_resumes_from_the_checkpoint_before(trained, tmp_path, beside):
    def deadly(file, content, keep):
        if content["step"] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        save_checkpoint(file, content, keep)

    beside(deadly)
    assert forked(lambda: train(tmp_path))() == -signal.SIGKILL
    beside(save_checkpoint)
    again = train(tmp_path)
    assert again.returncode == 0 and "resuming from step 3" in again.stdout
    assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(trained)


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_when_its_checkpoint_is_written(tmp_path, beside, monkeypatch, signum, code):
    rate = train_solver.learning_rate

    def with_signal(recipe, step, steps):
        if step == 3:
            signal.raise_signal(signum)
        return rate(recipe, step, steps)

    beside(slow)
    monkeypatch.setattr(train_solver, "learning_rate", with_signal)
    run = train(tmp_path)
    assert run.returncode == code and "after step 4, saved in" in run.stderr
    assert load_checkpoint(tmp_path / "digits" / "digits.pt")["step"] == 4


@pytest.mark.parametrize("at", [3, 5])
def test_what_was_not_written_is_not_called_saved(tmp_path, beside, monkeypatch, at):
    """The last checkpoint of a run fails: after a signal, or after its last step."""
    rate = train_solver.learning_rate

    def with_signal(recipe, step, steps):
        if step == at == 3:
            signal.raise_signal(signal.SIGTERM)
        return rate(recipe, step, steps)

    def failing(file, content, keep):
        time.sleep(0.3)
        raise CheckpointError("no space")

    beside(failing)
    monkeypatch.setattr(train_solver, "learning_rate", with_signal)
    run = train(tmp_path, settings={"save_every": 1000, "sample_every": 1000})
    refused(run, 1, "no space")
    assert "saved" not in run.stdout + run.stderr.replace("finishing this step and saving", "")


@linux
def test_another_training_waits_until_the_checkpoint_is_written(tmp_path, beside, monkeypatch):
    """The loop ends with an error while a checkpoint is written: the folder is locked for so long."""
    seen = []

    def watching(file, content, keep):
        time.sleep(0.5)
        try:
            with alone_in(file.parent):
                seen.append("free")
        except CheckpointError:
            seen.append("locked")

    def failing(recipe, step, steps):
        if step == 4:
            raise FloatingPointError("in the loop")
        return 1e-3

    beside(watching)
    monkeypatch.setattr(train_solver, "learning_rate", failing)
    refused(train(tmp_path), 1, "in the loop")
    assert seen == ["locked"]


def test_a_full_disk_ends_the_run_with_one_line(tmp_path, beside):
    run = on_a_full_disk(lambda: train(tmp_path), 40_000)
    refused(run, 1, "digits.pt", "was not written (File too large): it needs")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.part"))
    assert train(tmp_path).returncode == 0


def test_a_preview_is_drawn_when_its_checkpoint_is_written(tmp_path, beside, monkeypatch):
    seen = []

    def draw(self, step):
        seen.append((step, load_checkpoint(tmp_path / "digits" / "digits.pt")["step"]))

    beside(slow)
    monkeypatch.setattr(Preview, "draw", draw)
    assert train(tmp_path, settings={"sample_every": 3}).returncode == 0
    assert seen == [(3, 3), (6, 6)]
