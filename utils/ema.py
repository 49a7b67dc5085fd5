"""The exponential moving average of the weights that samples are drawn with."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps `model`, an averaged copy of a network: w_ema <- decay * w_ema + (1 - decay) * w.

    The decay warms up, min(decay, (1 + n) / (10 + n)) at update n, so that the random weights of the
    start are soon forgotten; it needs no state beyond the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._averages, self._weights = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self, step: int, taken: Tensor) -> None:
        """Takes in the weights after optimizer step number `step`, from 0, if it was `taken`: a bool tensor, ()."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if taken.device.type == "cpu":  # where a tensor can be asked without waiting
            if taken:
                torch._foreach_lerp_(self._averages, self._weights, share)
        else:
            moves = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(moves, share * taken)
            torch._foreach_add_(self._averages, moves)
