"""Where to compute, and in which precision."""

import torch


def pick_device() -> torch.device:
    """The CUDA device if there is one (CUDA_VISIBLE_DEVICES chooses among several), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context to train in: bfloat16 for "bf16", and for "auto" where the device computes it in hardware."""
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
