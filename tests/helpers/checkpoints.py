"""Small checkpoints."""

import torch

from helpers.scripts import ROOT
from runs.config import load_recipe


def content(step, numbers=5000):
    """What a checkpoint holds, with this many random weights."""
    recipe = load_recipe(ROOT / "config.yaml", "Digits")
    weights = torch.randn(numbers, generator=torch.Generator().manual_seed(step))
    return {"recipe": recipe, "step": step, "model": {"w": weights}, "ema": {}, "optimizer": {}}
