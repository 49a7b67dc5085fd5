"""The UNet of Ho et al. 2020, with the parameter names and shapes of the published checkpoints.

x (B, C, H, W), t (B,)  ──▶  down_blocks ──▶ middle_block ──▶ up_blocks ──▶ out  (B, C, H, W)
                                  └──────── skip connections ─────┘
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """cos(ω_k t) for all k, then sin(ω_k t), with ω_k = 10000^(-2k / width) for k = 0 … width/2 - 1.

    t: int64 (B,); width: even. Returns float32 (B, width). The frequencies are those of Vaswani et al. 2017 (3.5).
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t[:, None].float() * frequencies  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def usual_norm_groups(model_channels: int) -> int:
    """The default number of groups of every GroupNorm: 32 for the published 128 channels, fewer for fewer channels.

    It is the largest divisor of model_channels, up to 32, that leaves at least four channels per group (1 if there is
    none). GroupNorm subtracts the mean of each group over channels and positions. With one channel per group this would
    remove the time embedding, which is constant over the positions, and the block would not see t.
    """
    return max((g for g in range(1, 33) if model_channels % g == 0 and model_channels // g >= 4), default=1)


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a shortcut around both.

    x (B, in_channels, H, W), emb (B, time_channels) -> (B, out_channels, H, W). groups must divide in_channels and
    out_channels.
    """

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.GroupNorm(groups, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.conv2 = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

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
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1)

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
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution. The time embedding is not used."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if x.is_cuda and torch.compiler.is_compiling():  # the compiler would sort in the backward pass of interpolate
            return self.conv(doubled(x))
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def doubled(x: Tensor) -> Tensor:
    """Each pixel as 2x2 pixels: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class Stage(nn.Sequential):
    """A chain of layers that are called as layer(x, emb), plain convolutions as layer(x)."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


class UNet(nn.Module):
    """Predicts noise, x_start or v, depending on its training, from a noisy picture and its timestep.

    image_size: height and width in pixels, divisible by 2 ** (len(channel_mult) - 1), times patch_size if given.
    image_channel: channels of the input and of the output, usually 1 or 3.
    model_channels: channels of the finest level, an even number.
    channel_mult: one number per level, finest first: level i has model_channels * channel_mult[i] channels.
    num_res_blocks: residual blocks per level on the way down; the way up has one more.
    attention_resolutions: sizes in pixels of the feature maps with attention. None: only the coarsest, which is 1/8 of
        the image with four levels. The middle block always has attention.
    num_heads: attention heads; they must divide the channels of every level with attention.
    dropout: its probability, inside the residual blocks.
    norm_groups: groups of every GroupNorm, a divisor of model_channels. None: `usual_norm_groups`.
    patch_size: the finest level sees squares of so many pixels a side as one position, a power of 2; None: 1. A size of
        2 makes every level half as high and wide, and a step about a quarter of the work.
    Raises ValueError if these do not fit together.
    """

    def __init__(
        self,
        image_size: int = 32,
        image_channel: int = 3,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] | None = None,
        num_heads: int = 4,
        dropout: float = 0.0,
        norm_groups: int | None = None,
        patch_size: int | None = None,
    ):
        super().__init__()
        least = min(image_channel, model_channels, num_res_blocks, num_heads, image_size, *channel_mult)
        if least < 1 or not channel_mult:
            names = "image_size, image_channel, model_channels, channel_mult, num_res_blocks and num_heads"
            raise ValueError(f"{names} must all be at least 1")
        levels, patch_size = len(channel_mult), patch_size or 1
        if patch_size & (patch_size - 1):
            raise ValueError(f"patch_size must be a power of 2, not {patch_size}")
        self.image_channel, self.model_channels, self.patch_size = image_channel, model_channels, patch_size
        self.downsampling = patch_size * 2 ** (levels - 1)
        _check_size(image_size, image_size, self.downsampling)
        sizes = [image_size // patch_size // 2**level for level in range(levels)]
        patch_channels = image_channel * patch_size**2
        attention = sizes[-1:] if attention_resolutions is None else attention_resolutions
        for size in attention:
            if size not in sizes:
                known = ", ".join(map(str, sizes))
                raise ValueError(f"attention_resolutions: no feature map is {size} pixels wide; they are {known}")
        if model_channels % 2:
            raise ValueError(f"model_channels must be even for the time embedding, not {model_channels}")
        attention_widths = {model_channels * channel_mult[sizes.index(size)] for size in attention}
        for width in sorted(attention_widths | {model_channels * channel_mult[-1]}):  # the last: the middle block
            if width % num_heads:
                raise ValueError(f"num_heads={num_heads} does not divide the {width} channels of attention")
        groups = norm_groups or usual_norm_groups(model_channels)
        if model_channels % groups:
            raise ValueError(f"norm_groups={groups} does not divide model_channels={model_channels}")
        time_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )

        def layers(in_channels: int, out_channels: int, size: int) -> list[nn.Module]:
            block = ResidualBlock(in_channels, out_channels, time_channels, groups, dropout)
            return [block, AttentionBlock(out_channels, num_heads, groups)] if size in attention else [block]

        width = model_channels
        self.down_blocks = nn.ModuleList([Stage(nn.Conv2d(patch_channels, width, 3, padding=1))])
        skips = [width]  # the channels of each output of down_blocks, which up_blocks concatenate in reverse order
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.down_blocks.append(Stage(*layers(width, model_channels * mult, sizes[level])))
                width = model_channels * mult
                skips.append(width)
            if level < levels - 1:
                self.down_blocks.append(Stage(Downsample(width)))
                skips.append(width)

        self.middle_block = Stage(
            ResidualBlock(width, width, time_channels, groups, dropout),
            AttentionBlock(width, num_heads, groups),
            ResidualBlock(width, width, time_channels, groups, dropout),
        )

        self.up_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                stage = layers(width + skips.pop(), model_channels * mult, sizes[level])
                width = model_channels * mult
                if level > 0 and i == num_res_blocks:
                    stage.append(Upsample(width))
                self.up_blocks.append(Stage(*stage))

        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, patch_channels, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: float (B, C, H, W); t: int64 (B,). Returns (B, C, H, W).

        H and W may differ from image_size. Raises ValueError for another C, or for H or W that cannot be halved often
        enough.
        """
        B, C, H, W = x.shape
        if C != self.image_channel:
            raise ValueError(f"the network was built for {self.image_channel} channels and was given {C}")
        _check_size(H, W, self.downsampling)
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))  # (B, 4 * model_channels)
        x, skips = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x, []
        for stage in self.down_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.up_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        x = self.out(x)
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x


def _check_size(height: int, width: int, factor: int) -> None:
    """ValueError, with sizes that would fit, unless `factor` divides both; factor: 2 ** (the number of halvings)."""
    if height % factor or width % factor:
        size = str(height) if height == width else f"{height}x{width}"
        near = max(factor, min(height, width) // factor * factor)
        raise ValueError(
            f"image_size {size} does not fit: this network halves it {factor.bit_length() - 1} times, so it must "
            f"be a multiple of {factor}, such as {near} or {near + factor}"
        )
