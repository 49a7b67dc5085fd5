"""What only a CUDA device can show: make test-cuda, or python -m pytest -m cuda tests/test_cuda.py without .venv.

CUDA_TESTS_ON=cpu runs the same on a CPU, to see that these tests themselves work.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from threading import get_ident

import numpy as np
import pytest
import torch
import torch._inductor.config
from helpers.pictures import numbered, sample
from helpers.scripts import ENVIRONMENT, ROOT, TINY, TORCHRUN, refused, script, state_hash, tiny, train
from PIL import Image

from runs.checkpoint import save_checkpoint
from runs.config import load_recipe
from runs.network import build
from training.batches import Batches
from training.log import TrainingLog, read_log
from training.processes import Processes
from training.step import TrainingStep
from training.way import compile_outcome, usual_way

pytestmark = pytest.mark.cuda
SHIPPED = ROOT / "checkpoints" / "digits.safetensors"


@pytest.fixture(scope="module")
def device():
    if os.environ.get("CUDA_TESTS_ON") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def defaults(device):
    yield
    torch.use_deterministic_algorithms(False)
    torch._inductor.config.deterministic = False
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """32 pictures of noise, 128x128."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(32):
        pixels = np.random.default_rng(i).integers(0, 256, (128, 128, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@contextmanager
def no_synchronisation(device):
    """An error where the host waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


class Loop:
    """The step of a training on pictures of noise."""

    def __init__(self, device, folder, compile=False, **settings):
        network = {"model_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1} if device.type == "cuda" else TINY
        settings = network | {"dropout": 0.1, "grad_clip": 1.0, "compile": str(compile).lower()} | settings
        self.recipe = load_recipe(ROOT / "config.yaml", "Cifar10", [f"{k}={v}" for k, v in settings.items()])
        torch.manual_seed(0)
        self.step = TrainingStep(self.recipe, *build(self.recipe), Processes(device), usual_way(self.recipe, device))
        self.network, self.model, self.diffusion = self.step.network, self.step.model, self.step.diffusion
        images = np.random.default_rng(0).integers(0, 256, (256, 3, 32, 32), np.uint8)
        self.batches = Batches(images, self.recipe, self.diffusion, device)
        self.device, self.done = device, 0
        self.log = TrainingLog(folder, self.recipe, Processes(device), 4, 0, 100)

    def steps(self, count, factor=1.0):
        for batch in self.batches.steps(self.done, self.done + count):
            losses, norm, taken = self.step(replace(batch, x_start=batch.x_start * factor), 1e-3)
            self.log.add(losses, batch.t, norm, taken)
        self.done += count
        return taken

    def state(self):
        step = self.step
        moments = [value for state in step.optimizer.state.values() for value in state.values()]
        tensors = (*step.model.parameters(), *step.ema.model.parameters(), *moments)
        return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("compile", [False, True, "graphs"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_step_never_waits_for_the_device_and_a_wrong_one_is_left_out(device, tmp_path, compile, precision):
    if compile == "graphs" and device.type == "cpu":
        pytest.skip("CUDA graphs")
    if compile and precision == "fp16" or compile == "graphs" and precision == "fp32":
        pytest.skip("compiled as bf16 is")
    loop = Loop(device, tmp_path, compile, precision=precision)
    loop.steps(4)
    with no_synchronisation(device):
        loop.steps(5)
    before = loop.state()
    assert not loop.steps(1, factor=torch.nan)
    assert all(map(torch.equal, loop.state(), before))
    assert loop.steps(1) and not any(map(torch.equal, loop.state()[:1], before[:1]))
    assert not compile or compile_outcome()


def test_compiled_and_eager_gradients_are_equal(device, tmp_path):
    gradients = []
    for compile in (False, True):
        loop = Loop(device, tmp_path, compile, precision="fp32", dropout=0.0)
        torch.nn.init.normal_(loop.model.out[2].weight, std=0.01, generator=torch.Generator(device).manual_seed(0))
        loop.steps(1)
        gradients.append(torch.cat([weight.grad.flatten() for weight in loop.model.parameters()]))
    apart = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert apart < 5e-3  # TF32 rounds factors to 1e-3, and the kernels differ


def test_cuda_graphs_change_no_bit(device, tmp_path):
    ends = []
    for compile in (True, "graphs") if device.type == "cuda" else (False, False):
        torch._dynamo.reset()
        loop = Loop(device, tmp_path, compile)  # the same kernels, launched one by one or as a graph, with dropout
        loop.steps(8)
        ends.append(loop.state())
        assert not compile or compile_outcome()
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    "settings", [{}, {"compile": "false", "precision": "fp32"}, {"precision": "fp16"}, {"compile": "graphs"}]
)
def test_a_resumed_run_ends_with_the_same_bits(device, tmp_path, faces, settings, monkeypatch):
    """At 128 px attention has several tiles of keys, whose gradients only a deterministic kernel sums in one order."""
    if settings == {"compile": "graphs"} and device.type == "cpu":
        pytest.skip("CUDA graphs")
    threads = []
    monkeypatch.setattr(
        "training.resume.save_checkpoint", lambda *args: threads.append(get_ident()) or save_checkpoint(*args)
    )
    settings = {"channel_mult": "1,2,2,2", "dropout": 0.1, "save_every": 4, "num_workers": 2} | settings
    place, hashes = ("--data_path", faces), []
    for i, lengths in enumerate(([12], [12], [4, 12])):
        for steps in lengths:
            torch._dynamo.reset()  # a new process compiles anew, and another machine has another cache
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"compiled_{i}_{steps}"))
            run = train(tmp_path / str(i), *place, "--device", device, data_name="StyleGAN_Face",
                        settings=settings | {"max_steps": steps})  # fmt: skip
            assert run.returncode == 0, run.stderr
        hashes.append(state_hash(tmp_path / str(i) / "stylegan_face" / "stylegan_face.pt"))
    assert len(set(hashes)) == 1
    assert (get_ident() in threads) == (device.type == "cpu")  # on a GPU a thread writes
    uncompiled = settings.get("compile") == "false" or device.type == "cpu"
    assert (", compiled; saved" in run.stdout) != uncompiled


def test_out_of_memory_is_one_line_with_advice(device, tmp_path, faces):
    if device.type == "cpu":
        pytest.skip("a CPU has too much memory")
    settings = {"batch_size": 32, "model_channels": 2048, "norm_groups": 32, "compile": "false", "image_size": 128}
    settings |= {"channel_mult": "1,1,1", "max_steps": 1}
    run = script("train_solver.py", *tiny(tmp_path, "StyleGAN_Face", **settings), "--data_path", faces)
    refused(run, 1, "out of memory")  # in a process of its own, which gives the memory back


@pytest.mark.parametrize("extra", [(), ("--compile",), ("--batch_size", 3)])
def test_a_seed_gives_the_same_samples_as_on_a_cpu(device, tmp_path, extra):
    if device.type == "cpu" and "--compile" in extra:
        pytest.skip("--compile is for CUDA")
    args = ("--sample_num", 10, "--batch_size", 4, "--precision", "fp32", "--sample_info", "DPMpp_10_1p0")
    for where, more in (("cpu", ()), (device, extra)):
        folder = tmp_path / ("cpu" if where == "cpu" else "device")
        sample(SHIPPED, tmp_path / "r", *args, "--sample_dir", folder, "--device", where, *more)
    apart = np.abs(numbered(tmp_path / "cpu", 10) - numbered(tmp_path / "device", 10))
    assert apart.max() <= 2 and apart.mean() < 0.05  # levels of 255: float32 sums in another order


@pytest.mark.parametrize(
    "mode, args",
    [
        ("evaluate", ("--sample_num", 100)),
        ("interpolate", ("--interp_mode", "lerp", "ddim", "--sample_info", "DDIM_10_0p0")),
        ("compare", ("--sample_info", "DDIM_5_0p0", "DPMpp_5_0p0")),
    ],
)
def test_every_mode_runs_there(device, tmp_path, mode, args):
    run = sample(SHIPPED, tmp_path, *args, "--device", device, mode=mode)
    assert f" s on {device} in " in run.stdout


GLOO = """import os, sys
import torch.distributed as dist
os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")  # both on one device, which NCCL refuses
start = dist.init_process_group
dist.init_process_group = lambda backend, **keywords: start("gloo", **keywords)
sys.path.insert(0, os.getcwd())
import train_solver
from utils.command_line import run
run(train_solver.main)
"""


def test_two_processes_on_one_device_train_as_one_does(device, tmp_path):
    settings = {"precision": "fp32", "compile": "false", "log_every": 1, "max_steps": 4, "image_channel": 3}
    assert train(tmp_path / "one", "--device", device, settings=settings).returncode == 0
    (tmp_path / "gloo.py").write_text(GLOO)
    command = [*TORCHRUN, "2", str(tmp_path / "gloo.py"), *tiny(tmp_path / "two", **settings)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "Grad strides" not in run.stderr  # it is there, harmless, for one channel: its stride may be anything
    one, two = (read_log(tmp_path / name / "digits" / "metrics.jsonl") for name in ("one", "two"))
    for line, other in zip(one, two, strict=True):  # halves of a batch are summed in another order
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_a_training_in_a_process_of_its_own_says_what_it_computed_in(device, tmp_path):
    command = [sys.executable, "train_solver.py", *tiny(tmp_path, sample_every=3), "--device", str(device)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert f" images/s on {device} in " in run.stdout and (", compiled" in run.stdout) == (device.type == "cuda")
    assert len(list((tmp_path / "digits").glob("preview_*.png"))) == 2
