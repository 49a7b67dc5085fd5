"""Runs the scripts, small: in this process, or in one of its own where a signal, a kill or torchrun needs that."""

import hashlib
import importlib
import io
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datasets.folder import warn_once
from helpers.systems import resource
from training.log import read_log
from training.plan import activation_bytes
from utils.command_line import run

ROOT = Path(__file__).parent.parent.parent
TINY = {"model_channels": 8, "channel_mult": 1, "num_res_blocks": 1, "num_heads": 2, "batch_size": 8}
TINY |= {"sample_num": 9, "preview_info": "DDIM_2_0p0", "max_steps": 6, "save_every": 3}
LABELLED = {"num_classes": "auto", "label_dropout": 0.2}
LONG = {"batch_size": 16, "max_steps": 200, "save_every": 20, "log_every": 10, "sample_every": 1000}
LONG |= {"dropout": 0.1, "horizontal_flip": "true"}  # all that is random
HELD_OUT, AT_ONCE = 8, 10  # pictures; trajectories in a batch of the teacher
# downloads fail at once, on any machine: nothing listens on the discard port
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
ENVIRONMENT = os.environ | NO_NETWORK | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def call(main, *argv):
    """Calls a script's main with these arguments: its exit code and what it wrote, like subprocess.run."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True) for _ in range(2)]
    out, err = streams
    warn_once.cache_clear()  # as in a new process
    handlers, code = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}, 0
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", list(map(str, argv)))
            for variable, value in NO_NETWORK.items():
                patch.setenv(variable, value)
            run(main)
    except SystemExit as ended:
        code = ended.code
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (out, err))
    return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)


def in_process(name, *args):
    """Runs a script in this process: they are many, and torch takes seconds to load."""
    return call(importlib.import_module(name.removesuffix(".py")).main, name, *args)


def forked(function):
    """Starts function() in a child, which shares all that is loaded here: torch alone would take seconds.

    The returned function waits for the child, and returns its result, or -N if signal N has killed it; its `pid` is the
    child's. On other systems than Linux the test is skipped: a process with threads cannot be forked there.
    """
    if sys.platform != "linux":
        pytest.skip("forks a process that has threads")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(writing)

    def wait():
        with os.fdopen(reading, "rb") as stream:
            content = stream.read()
        status = os.waitpid(child, 0)[1]
        assert content or os.WIFSIGNALED(status), "the child failed; run its function here to see why"
        return pickle.loads(content) if content else -os.WTERMSIG(status)

    wait.pid = child
    return wait


def together(function, world=2):
    """function() in so many children, each of which is told that it is one of torchrun's: the results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in told.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
        return function()

    children = [forked(partial(ranked, rank)) for rank in range(world)]
    return [wait() for wait in children]


def on_a_full_disk(function, limit):
    """function() where no file can grow beyond `limit` bytes."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return function()

    return forked(limited)()


def script(name, *args, launcher=(sys.executable,), **keywords):
    """Runs a script in a process of its own; keywords for subprocess.run."""
    command = [*launcher, ROOT / name, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **keywords)


def tiny(save_dir, data_name="Digits", **settings):
    """Arguments for six steps of a tiny network; settings over TINY."""
    overrides = [f"{key}={value}" for key, value in (TINY | settings).items()]
    return ["--data_name", data_name, "--save_dir", str(save_dir), "--set", *overrides]


COUNTED = {}  # bytes by network and batch


def briefly(patch):
    """A training draws no curve, measures few held-out pictures and counts the memory of each network once.

    They would take three quarters of the time of so few steps. patch: a pytest.MonkeyPatch.
    """

    def counted(model, diffusion, batch_shape):
        key = str(model), batch_shape
        if key not in COUNTED:
            COUNTED[key] = activation_bytes(model, diffusion, batch_shape)
        return COUNTED[key]

    patch.setattr("training.plan.activation_bytes", counted)
    patch.setattr("train_solver.save_loss_curve", lambda lines, file: None)
    patch.setattr("training.held_out.PICTURES", HELD_OUT)
    patch.setattr("training.trajectories.AT_ONCE", AT_ONCE)


def training(*args):
    """train_solver.py in this process, briefly."""
    with pytest.MonkeyPatch.context() as patch:
        briefly(patch)
        return in_process("train_solver.py", *args)


def train(save_dir, *args, data_name="Digits", settings=None, whole=False):
    """A tiny training, to its end, in this process; whole: with all held-out pictures and the curve."""
    arguments = tiny(save_dir, data_name, **(settings or {}))
    return in_process("train_solver.py", *arguments, *args) if whole else training(*arguments, *args)


def start_training(save_dir, processes=1, **settings):
    """Such a training, begun, in a session of its own: with torchrun where it is of several processes."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable, "-u"]
    return subprocess.Popen(
        [*launcher, "train_solver.py", *tiny(save_dir, **settings)],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def state_hash(file):
    """SHA-256 of a checkpoint's step, weights, Adam state and averaged weights, and nothing else of it."""
    content, digest = torch.load(file, map_location="cpu", weights_only=True), hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        else:
            digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())

    add({key: content[key] for key in ("step", "model", "ema", "optimizer")})
    return digest.hexdigest()


def refused(run, code, *says):
    """The run ended with this code and one line on stderr that says all of this; progress bars aside."""
    lines = [line for line in re.split(r"[\r\n]+", run.stderr) if line.startswith("error:")]
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr and len(lines) == 1, run.stderr
    assert all(str(text) in lines[0] for text in says), lines[0]


def wait_for(step, save_dir, process=None):
    """Until a training has logged this step; process: in which it runs, and must not end."""
    for _ in range(1200):
        if any(line["step"] >= step for line in read_log(save_dir / "digits" / "metrics.jsonl")):
            return
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("a training of tiny steps got nowhere in a minute")


def stopped_by(signum, process, *pids):
    """Sends the signal; returns what the training printed, which ended in half of the time that torchrun gives."""
    began = time.monotonic()
    for pid in pids or [process.pid]:
        os.kill(pid, signum)
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 15, text
    return text


def resumes_to_the_same_end(save_dir, settings, expected, processes=1):
    """The same command again ends in the expected state; returns the step that it resumed from."""
    if processes == 1:
        ended = train(save_dir, settings=settings)
        code, text = ended.returncode, ended.stdout + ended.stderr
    else:
        process = start_training(save_dir, processes, **settings)
        text, _ = process.communicate(timeout=120)
        code = process.returncode
    assert code == 0, text
    assert state_hash(save_dir / "digits" / "digits.pt") == expected
    assert not list(save_dir.rglob("*.part"))
    steps = re.search(r"resuming from step ([\d,]*\d)", text)
    return int(steps[1].replace(",", "")) if steps else 0
