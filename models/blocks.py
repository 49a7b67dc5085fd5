"""The parts of the UNet: the time embedding, residual blocks, attention, and the changes of size."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layout import Conv2d, doubled


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """cos(ω_k t) for all k, then sin(ω_k t), with ω_k = 10000^(-2k / width) for k = 0 … width/2 - 1.

    t: int64 (B,); width: even. Returns float32 (B, width). The frequencies are those of Vaswani et al. 2017 (3.5).
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t[:, None].float() * frequencies  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a shortcut around both.

    x (B, in_channels, H, W), emb (B, time_channels) -> (B, out_channels, H, W). groups must divide in_channels and
    out_channels.
    """

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.GroupNorm(groups, in_channels), nn.SiLU(), Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.conv2 = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(x) + self.time_emb(emb)[:, :, None, None]
        return self.conv2(h) + self.shortcut(x)


class AttentionBlock(nn.Module):
    """Self-attention over all positions of the feature map, with a residual connection. (B, C, H, W) -> the same.

    num_heads and groups must divide channels. The output channels of qkv are ordered by head: q, k and v of the first
    head, then those of the second, and so on. The time embedding is not used.
    """

    def __init__(self, channels: int, num_heads: int, groups: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = Conv2d(channels, 3 * channels, 1, bias=False)
        self.proj = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, self.num_heads, 3, C // self.num_heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(2)  # each (B, heads, H*W, C/heads)
        h = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(C/heads)) v
        return x + self.proj(h.transpose(-1, -2).reshape(B, C, H, W))


class Downsample(nn.Module):
    """Halves height and width with a strided convolution. The time embedding is not used."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution. The time embedding is not used."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if x.is_cuda and torch.compiler.is_compiling():  # the compiler would sort in the backward pass of interpolate
            return self.conv(doubled(x))
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """A chain of layers that are called as layer(x, emb), plain convolutions as layer(x)."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """The sides of a picture, of which one number stands for both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def check_multiple(height: int, width: int, factor: int) -> None:
    """ValueError, with sizes that would fit, unless `factor`, pixels a side of the coarsest position, divides both."""
    if height % factor or width % factor:
        size = str(height) if height == width else f"{height}x{width}"
        low = max(factor, min(height, width) // factor * factor)
        raise ValueError(f"image_size {size} does not fit: use a multiple of {factor}, such as {low} or {low + factor}")
