"""The exponential moving average (EMA) of the weights, which samples are drawn with."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps `model`, an averaged copy of a network: w_ema <- decay * w_ema + (1 - decay) * w.

    The decay warms up as min(decay, (1 + n) / (10 + n)) at step n, so that the random initial weights are soon
    forgotten. This needs no state beyond the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._averages, self._weights = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self, step: int, taken: Tensor) -> None:
        """Averages in the weights after optimizer step `step`, from 0, unless it was skipped (taken: bool, ())."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if taken.device.type == "cpu":  # reading the tensor costs no device sync
            if taken:
                torch._foreach_lerp_(self._averages, self._weights, share)
        else:
            moves = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(moves, share * taken)
            torch._foreach_add_(self._averages, moves)
