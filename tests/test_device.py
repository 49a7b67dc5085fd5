"""Devices and precisions. What needs no GPU is tested with devices that only have a name."""

import os

import pytest
import torch
import torch._inductor.config
from helpers.scripts import in_process, refused, train
from torch import nn

import utils.device
from diffusion import GaussianDiffusion
from files.errors import ConfigError, TrainingError, out_of_memory_means
from runs.run import load_run
from training.plan import describe
from training.way import compile_outcome, compiled, prepare, usual_way
from utils.device import autocast, pick_device, resolve_precision, use_tf32

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda:1"), torch.device("mps")
CARDS = {"H100": (9, 0), "A100": (8, 0), "T4": (7, 5), "V100": (7, 0), "P100": (6, 0)}


@pytest.fixture
def flags():
    """Restores what `prepare` sets."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch._inductor.config.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark = False
    use_tf32(False)
    torch.backends.cudnn.allow_tf32 = True
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def on(card, monkeypatch):
    """A device of this kind; of another kind at first, so that the device that is asked about must be named."""
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: CARDS[card] if device == CUDA else (6, 0)
    )
    return CUDA


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_the_precision(precision, dtype):
    with autocast(precision, CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


@pytest.mark.parametrize(
    "card, auto, layouts",
    [
        ("H100", "bf16", ("last", "last")), ("A100", "bf16", ("last", "last")), ("T4", "fp16", ("last", "first")),
        ("V100", "fp16", ("last", "first")), ("P100", "fp32", ("first", "first")),
    ],
)  # fmt: skip
def test_precision_and_layout_suit_the_card(monkeypatch, card, auto, layouts):
    device = on(card, monkeypatch)
    assert resolve_precision("auto", device) == auto and resolve_precision("fp32", device) == "fp32"
    ways = [usual_way({"precision": precision}, device) for precision in ("auto", "fp32")]
    assert [way["channels_last"] for way in ways] == [name == "last" for name in layouts]
    assert not any(usual_way({"precision": "auto"}, other)["channels_last"] for other in (MPS, CPU))
    assert resolve_precision("auto", MPS) == "fp32"


def test_fp32_is_tf32_in_training_and_float32_in_sampling(flags, monkeypatch, trained):
    device = on("H100", monkeypatch)
    prepare(device, deterministic=True)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    run = load_run(trained)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda self, *_, **__: self)
        patch.setattr(GaussianDiffusion, "to", lambda self, *_: self)
        run.to(device, "fp32")
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    recipe, model = run.recipe | {"precision": "fp32"}, run.model
    assert "fp32 on cuda:1, with TF32" in describe(recipe, model, run.diffusion, 100, 1, device)
    assert "TF32" not in describe(recipe | {"precision": "bf16"}, model, run.diffusion, 100, 1, device)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_determinism_is_strict_for_our_network_and_can_be_switched_off(flags, deterministic, ours):
    prepare(CUDA, deterministic, ours)
    assert torch.are_deterministic_algorithms_enabled() == torch._inductor.config.deterministic == deterministic
    assert not deterministic or torch.is_deterministic_algorithms_warn_only_enabled() == (not ours)
    assert torch.backends.cudnn.benchmark != deterministic


def test_apples_gpu_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == MPS == pick_device("mps") and pick_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == CPU


def test_processes_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    for name, value in (("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert pick_device() == pick_device("cuda") == torch.device("cuda:1") and pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match="--device cuda:0: torchrun gives each process a device"):
        pick_device("cuda:0")


def test_a_training_takes_a_device(tmp_path):
    refused(train(tmp_path, "--device", "cuda:99"), 2, "'cuda:99' is not available; this machine has cpu")
    refused(in_process("train_solver.py", "--data_name", "Digits", "--device", "mps"), 2, "'mps' is not available")
    ended = train(tmp_path, "--device", "cpu", settings={"precision": "fp32"})
    assert ended.returncode == 0 and "images/s on cpu in fp32; saved" in ended.stdout


def test_float16_trains_and_resumes_to_the_same_end(tmp_path):
    """The loss scale halves until nothing overflows, and is in the checkpoint."""
    settings = {"precision": "fp16", "max_steps": 20, "save_every": 10}
    for name, lengths in (("whole", [20]), ("parts", [10, 20])):
        for steps in lengths:
            assert train(tmp_path / name, settings=settings | {"max_steps": steps}).returncode == 0
    files = (tmp_path / name / "digits" / "digits.pt" for name in ("whole", "parts"))
    whole, parts = (torch.load(file, weights_only=True) for file in files)
    assert whole["scaler"]["scale"] == parts["scaler"]["scale"] > 1
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("Tried to allocate"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("could not create a primitive"), RuntimeError("could not create a memory object"),
    ],
)  # fmt: skip
def test_running_out_of_memory_is_known_by_all_its_names(error):
    with pytest.raises(TrainingError, match="out of memory: take less"), out_of_memory_means("take less"):
        raise error
    for other in ("the sizes do not match", "could not create a primitive descriptor for a convolution"):
        with pytest.raises(RuntimeError, match=other), out_of_memory_means("take less"):
            raise RuntimeError(other)


@pytest.mark.slow
def test_what_could_not_be_compiled_runs_and_is_reported(monkeypatch):
    """On CUDA this is automatic. The device only has a name here, and the network is on the CPU."""
    torch._dynamo.reset()
    network, x = nn.Linear(2, 2), torch.ones(1, 2)
    good = torch.compile(network, backend="eager")
    utils.device.torch._dynamo.utils.counters.clear()
    assert torch.equal(good(x), network(x)) and compile_outcome()

    def broken(*_, **__):
        raise RuntimeError("no compiler for this card")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **keys: original(network, backend=broken, **keys))
    for how in ("auto", "graphs"):
        torch._dynamo.reset()
        bad = compiled(network, how, CUDA)
        assert torch.equal(bad(x), network(x)) and not compile_outcome()
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, **keys: asked.append(keys) or network)
    assert torch.equal(compiled(lambda x, t: network(x), "graphs", CUDA)(x, None), network(x))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]  # PyTorch's name for CUDA graphs
    assert compiled(network, "auto", MPS) is network and compiled(network, "auto", CPU) is network
    torch._dynamo.config.suppress_errors = False
    torch._dynamo.reset()
