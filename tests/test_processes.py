"""Several processes, started by torchrun: they train as one does, stop together and die together."""

import os
import re
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.scripts import (
    LABELLED,
    LONG,
    forked,
    resumes_to_the_same_end,
    start_training,
    state_hash,
    stopped_by,
    train,
    wait_for,
)
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from runs.checkpoint import load_checkpoint
from training.log import read_log
from training.optimizer import make_optimizer, orthogonal, update
from training.processes import Processes, StopRequest

faults = pytest.mark.faults


def workers_of(launcher):
    """The process ids of torchrun's workers, rank 0 first."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
            parent = int(re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1])
        except (OSError, UnicodeDecodeError):
            continue
        if parent == launcher.pid and "RANK" in environment:
            found[int(environment["RANK"])] = int(folder.name)
    return [pid for _, pid in sorted(found.items())]


MUON = {"optimizer": "muon", "learning_rate": 1e-3, "Adam_beta1": 0.9, "Adam_beta2": 0.99}
EXACT = LABELLED | {"max_steps": 12, "log_every": 1, "precision": "fp32", "save_every": 6}


def launched(function):
    """function() in two processes of torchrun's launcher: the results by rank.

    They are forks of this one, which has loaded torch; the launcher is in another, where it changes signals and queues.
    """
    config = LaunchConfig(1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    config.start_method = "fork"
    results = forked(lambda: elastic_launch(config, function)())()
    return [results[rank] for rank in range(2)]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """They see the same pictures, labels and noise."""
    assert train(tmp_path / "one", settings=EXACT).returncode == 0  # first: it imports what both forks need
    two = launched(lambda: train(tmp_path / "two", settings=EXACT | {"gradient_accumulation": 2}))
    assert [run.returncode for run in two] == [0, 0], two
    assert [run.stdout.count("parameters") for run in two] == [1, 0]  # rank 1 prints nothing
    one, two = (read_log(tmp_path / n / "digits" / "metrics.jsonl") for n in ("one", "two"))
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)  # sums in another order, through 12 steps
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    contents = [load_checkpoint(tmp_path / n / "digits" / "digits.pt") for n in ("one", "two")]
    for name, weight in contents[0]["model"].items():
        # Adam divides by the gradient's size: where that is almost zero, rounding alone may turn a step of 1e-3 around
        assert (weight - contents[1]["model"][name]).abs().max() < 5e-3


def test_processes_share_the_matrices_of_muon():
    """Each computes a part of the steps, three matrices of one shape among them, and both have all of them."""

    def stepped():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)).double()
        computed = []
        with Processes(torch.device("cpu")) as processes, mock.patch("training.optimizer.orthogonal") as shared:
            shared.side_effect = lambda matrices: computed.append(len(matrices)) or orthogonal(matrices)
            optimizer = make_optimizer(model, MUON, processes)
            for _ in range(3):
                for weight in model.parameters():  # without a backward pass, which a fork may not have after others
                    weight.grad = torch.randn_like(weight)
                update(optimizer, 0.01, None)
        return computed, model.state_dict()

    (all_of, alone), (first, one), (second, other) = stepped(), *launched(stepped)
    assert (all_of, first, second) == ([3, 1] * 3, [2, 0] * 3, [1, 1] * 3)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, alone, rtol=0, atol=1e-12)  # products of two matrices at once, or of three


def test_a_signal_that_arrives_while_the_processes_agree_is_kept():
    class Together:
        world = 2

        def largest(self, number):
            stop._notice(signal.SIGTERM, None)
            return number

    stop = StopRequest(Together())
    assert [stop.agreed(), stop.agreed()] == [0, signal.SIGTERM]


SIGNALLED = LONG | {"save_every": 100_000}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The hash of the state in which two undisturbed processes end."""
    folder = tmp_path_factory.mktemp("together")
    process = start_training(folder, 2, **SIGNALLED)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return state_hash(folder / "digits" / "digits.pt")


@faults
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whom", ["launcher", "one worker", "everybody"])
def test_a_signal_stops_two_processes_at_one_step(together, tmp_path, signum, whom):
    process = start_training(tmp_path, 2, **SIGNALLED)
    wait_for(30, tmp_path, process)
    first, second = workers_of(process)
    text = stopped_by(
        signum, process, *{"launcher": [], "one worker": [second]}.get(whom, [process.pid, first, second])
    )
    step = int(re.search(rf"stopped by {signum.name} after step ([\d,]*\d)", text)[1])
    if whom == "one worker":  # torchrun reports its exit code, and itself ends with 1
        assert f"exitcode: {128 + signum}" in re.sub(r"exitcode\s*:", "exitcode:", text)
    assert load_checkpoint(tmp_path / "digits" / "digits.pt")["step"] == step
    assert resumes_to_the_same_end(tmp_path, SIGNALLED, together, processes=2) == step


@faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_others(tmp_path, rank):
    process = start_training(tmp_path, 2, **LONG | {"max_steps": 100_000})
    wait_for(50, tmp_path, process)
    pids = workers_of(process)
    os.kill(pids[rank], signal.SIGKILL)
    began = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), text
    assert load_checkpoint(tmp_path / "digits" / "digits.pt")["step"] >= 40
