"""What can happen to a training: signals, kills, numbers gone wrong, no memory. Nothing is lost.

The quick ones run with all tests; those marked `faults`, which do the same many times over, by make test-faults.
"""

import os
import random
import re
import signal
import threading
import time

import pytest
import torch
from helpers.scripts import (
    LONG,
    forked,
    refused,
    resumes_to_the_same_end,
    start_training,
    state_hash,
    stopped_by,
    train,
    wait_for,
)

from diffusion import GaussianDiffusion
from runs.checkpoint import load_checkpoint
from training.log import read_log

faults = pytest.mark.faults


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The state in which 200 steps end that nothing disturbs: (its hash, the checkpoint)."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, settings=LONG).returncode == 0
    return state_hash(folder / "digits" / "digits.pt"), folder / "digits" / "digits.pt"


@pytest.fixture
def training(tmp_path):
    """A tiny training in tmp_path, with something else in place of the loss of its n-th step, from 0."""

    def call(change, *args, **settings):
        losses, steps = GaussianDiffusion.training_losses, iter(range(1000))

        def changed(*args):
            training = torch.is_grad_enabled() and not args[2].is_meta  # not held out, not where the memory is counted
            return change(next(steps), losses(*args)) if training else losses(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GaussianDiffusion, "training_losses", changed)
            return train(tmp_path, *args, settings=settings)

    return call


# --- exactness --------------------------------------------------------------------------------------------------------


@faults
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("at", [93, 94, 140, 186])
def test_a_run_resumes_from_the_start_the_middle_and_the_end_of_an_epoch(uninterrupted, tmp_path, num_workers, at):
    settings = LONG | {"num_workers": num_workers}  # 1,500 pictures in batches of 16: 93 steps an epoch
    assert train(tmp_path, settings=settings | {"max_steps": at}).returncode == 0
    assert resumes_to_the_same_end(tmp_path, settings, uninterrupted[0]) == at


@faults
def test_twenty_kills_at_random_moments(uninterrupted, tmp_path):
    lines = read_log(uninterrupted[1].parent / "metrics.jsonl")
    chance, whole, killed = random.Random(0), lines[-1]["seconds"], 0
    for i in range(100):
        save_dir = tmp_path / str(i)
        process = start_training(save_dir, **LONG)
        wait_for(10, save_dir, process)
        time.sleep(chance.uniform(0, whole))
        process.kill()
        text, _ = process.communicate()
        if process.returncode == 0:  # it was faster
            continue
        assert process.returncode == -signal.SIGKILL, text
        done = read_log(save_dir / "digits" / "metrics.jsonl")[-1]["step"]
        assert done - resumes_to_the_same_end(save_dir, LONG, uninterrupted[0]) <= LONG["save_every"]
        killed += 1
        if killed == 20:
            return
    raise AssertionError(f"only {killed} of 100 were killed in time")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_signal_ends_the_run_after_the_step_that_it_came_in(trained, training, tmp_path, num_workers):
    def at_the_fourth(n, loss):
        if n == 3:
            signal.raise_signal(signal.SIGTERM)
        return loss

    ended = training(at_the_fourth, num_workers=num_workers)
    assert ended.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM after step 4, saved in" in ended.stderr
    assert resumes_to_the_same_end(tmp_path, {"num_workers": num_workers}, state_hash(trained)) == 4


def stopped_in(text, save_dir, settings, whole):
    """A run in save_dir that was interrupted, says so, and resumes to the end of the one in `whole`."""
    assert "Traceback" not in text, text
    step = int(re.search(r"stopped by SIG(?:INT|TERM) after step ([\d,]*\d)", text)[1])
    assert load_checkpoint(save_dir / "digits" / "digits.pt")["step"] == step >= 2
    assert resumes_to_the_same_end(save_dir, settings, state_hash(whole / "digits" / "digits.pt")) == step


SIGNALLED = LONG | {"max_steps": 60, "log_every": 1, "save_every": 100_000}


@faults
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_process_that_gets_a_signal_saves_and_ends(tmp_path, signum, num_workers):
    settings = SIGNALLED | {"num_workers": num_workers}
    assert train(tmp_path / "whole", settings=settings).returncode == 0
    process = start_training(tmp_path, **settings)
    wait_for(2, tmp_path, process)
    text = stopped_by(signum, process)
    assert process.returncode == 128 + signum and f"stopped by {signum.name}" in text, text
    stopped_in(text, tmp_path, settings, tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_from_outside_ends_a_run_whose_threads_fetch_pictures(tmp_path):
    """The same in a fork of this process, which has loaded torch."""

    def training():
        run = train(tmp_path, settings=settings)
        run.threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
        return run

    settings = SIGNALLED | {"num_workers": 2, "batch_size": 8}
    assert train(tmp_path / "whole", settings=settings).returncode == 0
    child = forked(training)
    wait_for(2, tmp_path)
    began = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    ended = child()
    assert ended.returncode == 128 + signal.SIGINT and time.monotonic() - began < 15
    assert len(ended.threads) == 1, ended.threads  # a process of its own would wait for others
    stopped_in(ended.stderr, tmp_path, settings, tmp_path / "whole")


def test_a_second_signal_ends_at_once(training, tmp_path):
    def twice(n, loss):
        signal.raise_signal(signal.SIGINT)
        (tmp_path / "still in the step").touch()
        signal.raise_signal(signal.SIGINT)
        (tmp_path / "later").touch()
        return loss

    assert forked(lambda: training(twice))() == -signal.SIGINT  # which a shell calls 130
    assert (tmp_path / "still in the step").exists() and not (tmp_path / "later").exists()


# --- numbers and memory -----------------------------------------------------------------------------------------------


def finite(content):
    return all(w.isfinite().all() for part in ("model", "ema") for w in content[part].values())


@pytest.mark.slow
@pytest.mark.parametrize("value, parts", [(torch.nan, 1), (torch.inf, 2)])
def test_one_step_that_goes_wrong_is_skipped(training, tmp_path, value, parts):
    ended = training(lambda n, loss: loss + value if n == 3 else loss, gradient_accumulation=parts)
    content = load_checkpoint(tmp_path / "digits" / "digits.pt")
    assert ended.returncode == 0 and content["step"] == 6 and finite(content)
    assert {int(state["step"]) for state in content["optimizer"]["state"].values()} == {5}
    assert sum(line["skipped"] for line in read_log(tmp_path / "digits" / "metrics.jsonl")) == 1
    assert "1 step(s) skipped" in ended.stdout


@pytest.mark.slow
def test_twenty_steps_in_a_row_that_go_wrong_end_the_run(training, tmp_path):
    ended = training(lambda n, loss: loss * torch.nan if n > 3 else loss, max_steps=30)
    refused(ended, 1, "20 steps in a row, up to step 24", "learning_rate", "grad_clip", "precision=fp32", "resume")
    contents = [load_checkpoint(file) for file in (tmp_path / "digits").glob("*.pt")]
    assert [content["step"] for content in contents] == [3] and finite(contents[0])
    again = training(lambda n, loss: loss, max_steps=12, learning_rate=1e-4)
    assert again.returncode == 0 and load_checkpoint(tmp_path / "digits" / "digits.pt")["step"] == 12


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_out_of_memory_names_what_to_change(training, tmp_path, error):
    def exhausted(n, loss):
        if n == 4:
            raise error
        return loss

    ended = training(exhausted, gradient_accumulation=1)
    refused(ended, 1, "out of memory", "batch_size=8, gradient_accumulation=1 and precision=auto", "precision=bf16")
    content = load_checkpoint(tmp_path / "digits" / "digits.pt")
    assert content["step"] == 3 and content["recipe"]["batch_size"] == 8  # no setting was changed silently
