"""Counts the floating point operations of each block of config.yaml, from which docs/howto.md estimates times.

    python benchmarks/operations.py

A multiplication and an addition are two operations. Only matrix products and convolutions count; the optimizer does
not. Nothing is computed: the tensors have shapes, but no values.
"""

import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import yaml

from datasets import picture_shape
from runs.config import load_recipe
from runs.network import without_weights
from utils.command_line import ArgumentParser, run

CONFIG = Path(__file__).parent.parent / "config.yaml"
BATCH = 8


def operations(recipe: dict) -> tuple[int, float, float]:
    """Parameters, and 10⁹ operations for an image: of a call of the network, and of a training step."""
    model, counts = without_weights(recipe)[0].train(), []
    x = torch.empty(BATCH, *picture_shape(recipe["image_size"], recipe["image_channel"]), device="meta")
    t = torch.zeros(BATCH, dtype=torch.long, device="meta")
    for train in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = model(x, t)
            if train:
                out.sum().backward()
        counts.append(counter.get_total_flops() / BATCH / 1e9)
    return sum(weight.numel() for weight in model.parameters()), *counts


def main() -> None:
    ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    print("block, parameters, 10⁹ operations for a call and an image, for a training step and an image")
    for name in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["Train_Data"]:
        recipe = load_recipe(CONFIG, name)
        recipe["num_classes"] = None  # a table of classes adds no product
        parameters, call, step = operations(recipe)
        print(f"{name}, {parameters:,}, {call:.3g}, {step:.3g}")


if __name__ == "__main__":
    run(main)
