"""The exponential moving average of the weights that samples are drawn with."""

import copy

import torch
from torch import nn


class EMA:
    """Keeps `model`, an averaged copy of a network: w_ema <- decay * w_ema + (1 - decay) * w.

    The decay warms up, min(decay, (1 + n) / (10 + n)) at update n, so that the random weights of the
    start are soon forgotten; it needs no state beyond the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after optimizer step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
