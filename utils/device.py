"""Where to compute, in which precision, and how the device does it best."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import ConfigError


def pick_device(name: str | None = None) -> torch.device:
    """cpu, cuda or cuda:N; unless named, the CUDA device if there is one (CUDA_VISIBLE_DEVICES chooses), else the CPU.

    Under torchrun each process takes its own of several. ConfigError for a device that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name is not None and name not in there:
        raise ConfigError(f"device {name!r} is not there: this machine has {', '.join(there)}")
    if name == "cuda" or (name is None and count):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}"
    return torch.device(name or "cpu")


def prepare(device: torch.device) -> None:
    """On CUDA: float32 products in TF32, and the same kernels every time, so that a run can be repeated to the bit."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of pictures in memory that the device's convolutions are fastest in."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def compiled(network: nn.Module, compile: bool | str, device: torch.device) -> nn.Module:
    """torch.compile for True, and for "auto" on CUDA devices, where what cannot be compiled runs as it is."""
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
    """The same for sampling, where "auto" is fp32 for networks that predict noise.

    Their x_start is (x_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ): at the noisy end it multiplies a rounded ε by up to 2e4, and
    other pictures come out. Of x_start or v nothing is magnified, and the pictures stay the same to the eye.
    """
    return "fp32" if precision == "auto" and objective == "pred_noise" else resolve_precision(precision, device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context to run a network in: bfloat16 for "bf16", and for "auto" where the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16")


def ready_to_sample(
    model: nn.Module, device: torch.device, precision: str, compile: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network on the device as a function of (x, t), in a precision, float32 going in and coming out.

    compile: torch.compile with CUDA graphs, for which the device must be a CUDA one (ConfigError): the first
    call takes a minute, and so does each new batch size; after that the CPU no longer sets the pace.
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
            return network(x, t).to(torch.float32, copy=True)  # the graph's next run writes over its output

    return call
