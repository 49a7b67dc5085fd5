"""Which device to compute on, in which precision, and the settings that suit it."""

import ctypes
import os
import platform
import timeit
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion.gaussian import OBJECTIVES
from files.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(name: str | None = None) -> torch.device:
    """cpu, cuda, cuda:N or mps (Apple's GPU); the first that there is of cuda, mps and cpu if none is named.

    Under torchrun each process takes its own device. ConfigError for a device that is not available, and for a numbered
    one that all processes would share.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = [f"cuda:{i}" for i in range(count)] + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if count and name in (None, "cuda"):
        name = available[from_torchrun("LOCAL_RANK", 0) % count]
    elif name in available[:count] and from_torchrun("LOCAL_WORLD_SIZE", 1) > 1:
        raise ConfigError(f"--device {name}: torchrun gives each process a device of its own: leave the number out")
    if name not in (None, *available):
        raise ConfigError(f"device {name!r} is not available; this machine has {', '.join(available)}")
    return torch.device(name or available[0])


def rank_and_world() -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes: RANK and WORLD_SIZE of torchrun, or 0 and 1."""
    return from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1)


def from_torchrun(name: str, default: int) -> int:
    """A number that torchrun sets in the environment."""
    return int(os.environ.get(name, default))


def keep_freed_memory() -> None:
    """glibc keeps the memory of freed tensors for the next ones: the system would hand it out again page by page, which
    takes up to a quarter of a training step on a CPU. What the environment sets is obeyed."""
    by_hand = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not by_hand:
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # as in malloc.h
        mallopt(mmap_threshold, 2**25)  # blocks below 32 MiB, the most that it allows, are kept
        mallopt(trim_threshold, 2**31 - 1)


def one_thread_if_faster(call: Callable[[], object]) -> None:
    """Takes one thread of a CPU instead of all if `call` is 10 % faster then, because other programs use the cores.

    OMP_NUM_THREADS in the environment is obeyed.
    """
    threads, seconds = torch.get_num_threads(), {}
    if threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        for number in (threads, 1):
            torch.set_num_threads(number)
            seconds[number] = min(timeit.repeat(call, repeat=3, number=1))
        torch.set_num_threads(1 if seconds[1] < seconds[threads] / 1.1 else threads)


def use_tf32(allowed: bool) -> None:
    """Whether matrix products and convolutions of float32 on CUDA may round their factors to TF32's 10 bits."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # PyTorch allows it for convolutions unless told otherwise


def capability(device: torch.device) -> tuple[int, int]:
    """Of CUDA, else (0, 0). (7, 0) is Volta, whose tensor cores compute only float16; (8, 0) is Ampere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16"; "auto" is bf16 where the device computes it in hardware, else fp16 on tensor cores."""
    if precision != "auto":
        return precision
    on_cpu = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if on_cpu or capability(device) >= (8, 0) else "fp16" if capability(device) >= (7, 0) else "fp32"


def sampling_precision(precision: str, device: torch.device, objective: str) -> str:
    """`resolve_precision` for sampling, where "auto" is fp32 if x_start magnifies the network's rounding errors.

    Where the network predicts noise, x_start = (x_t - σ ε) / a multiplies them by up to 2e4 at the noisy end.
    """
    a, sigma = 5e-5, 1.0  # at the noisy end of cosine betas
    p, q = OBJECTIVES[objective](a, sigma)
    magnified = abs(q * a - p * sigma) < 0.1 * sigma
    return "fp32" if precision == "auto" and magnified else resolve_precision(precision, device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context to run a network in: bfloat16 or float16 where `resolve_precision` says so."""
    resolved = resolve_precision(precision, device)
    dtype = torch.float16 if resolved == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=resolved != "fp32")


def ready_to_sample(
    model: nn.Module, device: torch.device, precision: str, compile: bool = False
) -> Callable[..., Tensor]:
    """The network on the device as a function of (x, t), or (x, t, labels), in `precision`; float32 in and out.

    compile: torch.compile with CUDA graphs, on CUDA only (ConfigError elsewhere), a minute for each new batch size.
    """
    model = model.to(device).eval()
    if compile and device.type != "cuda":
        raise ConfigError(f"--compile is for CUDA devices, and this is {device}")
    network = torch.compile(model, mode="reduce-overhead") if compile else model

    def call(*inputs: Tensor) -> Tensor:
        with autocast(precision, device):
            if not compile:
                return network(*inputs).float()
            torch.compiler.cudagraph_mark_step_begin()
            return network(*inputs).to(torch.float32, copy=True)  # the next run of the graph overwrites its output

    return call
