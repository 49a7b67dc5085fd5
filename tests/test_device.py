"""Devices and precisions."""

import pytest
import torch
from torch import nn

from utils.device import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision, dtype):
    with autocast(precision, CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
