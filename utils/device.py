"""Which device to compute on, in which precision, and the settings that suit it."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import ConfigError


def pick_device(name: str | None = None) -> torch.device:
    """cpu, cuda or cuda:N. Without a name: a CUDA device if there is one (CUDA_VISIBLE_DEVICES selects), else the CPU.

    Under torchrun each process takes its own device. ConfigError for a device that is not available.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name is not None and name not in available:
        raise ConfigError(f"device {name!r} is not available; this machine has {', '.join(available)}")
    if name == "cuda" or (name is None and count):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}"
    return torch.device(name or "cpu")


def memory_bytes() -> float:
    """The memory of this machine, infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def rank_and_world() -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes: RANK and WORLD_SIZE of torchrun, or 0 and 1.

    ConfigError if the variables of torchrun are incomplete or not numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return 0, 1
    numbers = {name: given.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    numeric = all(text.isdecimal() for text in numbers.values())
    if not numeric or len(given) < len(names) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        found = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(f"{found} is not an environment of torchrun: start several processes with it, or unset them")
    return int(given["RANK"]), int(given["WORLD_SIZE"])


def prepare(device: torch.device) -> None:
    """On CUDA: TF32 for float32 matrix products, and deterministic kernels, so that a run can be repeated exactly."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def memory_format(device: torch.device) -> torch.memory_format:
    """The memory layout in which the device's convolutions are fastest."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def compiled(network: nn.Module, compile: bool | str, device: torch.device) -> nn.Module:
    """torch.compile for True. For "auto": on CUDA only, where parts that cannot be compiled run uncompiled."""
    automatic = compile == "auto" and device.type == "cuda"
    if automatic:
        torch._dynamo.config.suppress_errors = True
    return torch.compile(network) if automatic or compile is True else network


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device computes it in hardware."""
    if precision != "auto":
        return precision
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return "bf16" if native else "fp32"


def sampling_precision(precision: str, device: torch.device, objective: str) -> str:
    """`resolve_precision` for sampling, where "auto" is fp32 for networks that predict noise.

    x_start = (x_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ) multiplies the rounding error of ε by up to 2e4 at the noisy end, which
    changes the pictures. Predictions of x_start or v are not magnified, and the pictures stay the same to the eye.
    """
    return "fp32" if precision == "auto" and objective == "pred_noise" else resolve_precision(precision, device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context to run a network in: bfloat16 where `resolve_precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16")


def ready_to_sample(
    model: nn.Module, device: torch.device, precision: str, compile: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network on the device as a function of (x, t) that computes in `precision`; float32 in and out.

    compile: torch.compile with CUDA graphs, on CUDA only (ConfigError elsewhere). The first call takes about a minute,
    and so does each new batch size; afterwards the CPU no longer limits the speed.
    """
    model = model.to(device).eval()
    if compile and device.type != "cuda":
        raise ConfigError(f"--compile is for CUDA devices, and this is {device}")
    network = torch.compile(model, mode="reduce-overhead") if compile else model

    def call(x: Tensor, t: Tensor) -> Tensor:
        with autocast(precision, device):
            if not compile:
                return network(x, t).float()
            torch.compiler.cudagraph_mark_step_begin()
            return network(x, t).to(torch.float32, copy=True)  # the next run of the graph overwrites its output

    return call
