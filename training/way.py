"""How a training computes: precision, memory layout, threads, kernels and compiler.

A way is {"device", "precision", "channels_last", "threads"}, see `usual_way`; a checkpoint has the one of its run.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.device import capability, resolve_precision, use_tf32


def usual_way(recipe: dict, device: torch.device) -> dict:
    """How a training computes where nothing was measured: device, precision, memory layout and threads of the CPU.

    The layout in which convolutions are fastest is channels last on tensor cores.
    """
    precision = resolve_precision(recipe["precision"], device)
    last = capability(device) >= ((7, 0) if precision == "fp16" else (8, 0))
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"device": device.type, "precision": precision, "channels_last": last, "threads": threads}


def prepare(device: torch.device, deterministic: bool, ours: bool = True) -> None:
    """On CUDA: TF32 for float32, and, if asked for, deterministic kernels, so that a run can be repeated exactly.

    ours: whether the network is ours, whose operations all have one. Of others the rest is deterministic.
    """
    if device.type == "cuda":
        import torch._inductor.config as compiler  # here because it takes a second

        use_tf32(True)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(deterministic, warn_only=not ours)
        compiler.deterministic = deterministic  # no choice between sums by their speed at that moment
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = not deterministic  # the fastest kernel of this run may be another's second


def compiled(network: nn.Module, compile: bool | str, device: torch.device) -> Callable[..., Tensor]:
    """torch.compile for True, which raises its errors. For "auto": on CUDA only. "graphs": with CUDA graphs, each of
    which launches the hundreds of kernels of a step at once. With both, parts that cannot be compiled run uncompiled.
    """
    automatic, graphs = compile == "auto" and device.type == "cuda", compile == "graphs"
    if not (automatic or graphs or compile is True):
        return network
    torch._dynamo.config.suppress_errors = compile is not True
    torch._dynamo.utils.counters.clear()
    fast = torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else None)  # shapes do not change

    def call(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # the gradients of the step before are not used any more
        return fast(*inputs)

    return call if graphs else fast


def compile_outcome() -> bool:
    """Whether all that was to be compiled since the last call of `compiled` was, and with CUDA graphs if asked for."""
    counters = torch._dynamo.utils.counters
    return counters["frames"]["total"] == counters["frames"]["ok"] and not counters["inductor"]["cudagraph_skips"]
