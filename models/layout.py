"""Convolution and enlarging in the memory layout and form that are fast with cuDNN and the compiler."""

import torch
from torch import Tensor, nn


class SameLayout(torch.autograd.Function):
    """x, whose gradient gets the memory layout channels last. Not for the transforms of torch.func."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Conv2d):
    """nn.Conv2d that gets its input and its output's gradient in the layout of its kernel, if this is channels last.

    The compiler lays out the gradients of group norm, and enlarged pictures, the other way. cuDNN would copy each of
    them, slowly; a compiled network writes them as they are needed.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_channels_last(self.weight):
            x = x.contiguous(memory_format=torch.channels_last)
        y = super().forward(x)
        return SameLayout.apply(y) if is_channels_last(y) else y


def is_channels_last(x: Tensor) -> bool:
    """Whether the memory layout is channels last, and not the usual one, too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def doubled(x: Tensor) -> Tensor:
    """Each pixel as 2x2 pixels: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
