"""The UNet of Ho et al. 2020, with the parameter names and shapes of the published checkpoints.

x (B, C, H, W), t (B,)  ──▶  down_blocks ──▶ middle_block ──▶ up_blocks ──▶ out  (B, C, H, W)
                                  └──────── skip connections ─────┘
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Stage,
    Upsample,
    check_multiple,
    height_and_width,
    timestep_embedding,
)
from models.layout import Conv2d


def usual_norm_groups(model_channels: int) -> int:
    """The default number of groups of every GroupNorm: 32 for the published 128 channels, fewer for fewer channels.

    It is the largest divisor of model_channels, up to 32, that leaves at least four channels per group (1 if there is
    none). GroupNorm subtracts the mean of each group over channels and positions. With one channel per group this would
    remove the time embedding, which is constant over the positions, and the block would not see t.
    """
    return max((g for g in range(1, 33) if model_channels % g == 0 and model_channels // g >= 4), default=1)


class UNet(nn.Module):
    """Predicts noise, x_start, v or the flow, depending on its training, from a noisy picture and its timestep.

    image_size: pixels a side, or (height, width), divisible by 2 ** (len(channel_mult) - 1), times patch_size if given.
    image_channel: channels of the input and of the output, usually 1 or 3.
    model_channels: channels of the finest level, an even number.
    channel_mult: one number per level, finest first: level i has model_channels * channel_mult[i] channels.
    num_res_blocks: residual blocks per level on the way down; the way up has one more.
    attention_resolutions: sizes in pixels, of the shorter side, of the feature maps with attention. None: only the
        coarsest, 1/8 of the image with four levels and no patches. The middle block always has attention.
    num_heads: attention heads; they must divide the channels of every level with attention.
    dropout: its probability, inside the residual blocks.
    norm_groups: groups of every GroupNorm, a divisor of model_channels. None: `usual_norm_groups`.
    patch_size: the finest level sees squares of so many pixels a side as one position, a power of 2; None: 1. A size of
        2 makes every level half as high and wide, and a step about a quarter of the work.
    num_classes: of the labels that are embedded and added to the time embedding; None: it sees no labels.
    Raises ValueError if these do not fit together.
    """

    def __init__(
        self, image_size: int | Sequence[int] = 32, image_channel: int = 3, model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2), num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] | None = None, num_heads: int = 4, dropout: float = 0.0,
        norm_groups: int | None = None, patch_size: int | None = None, num_classes: int | None = None,
    ):  # fmt: skip
        super().__init__()
        (H, W), patch_size = height_and_width(image_size), patch_size or 1
        groups = norm_groups or usual_norm_groups(model_channels)
        sizes = [min(H, W) // patch_size // 2**level for level in range(len(channel_mult))]
        attention = sizes[-1:] if attention_resolutions is None else attention_resolutions
        _check(
            (H, W), image_channel, model_channels, channel_mult, num_res_blocks, num_heads, patch_size, groups, sizes,
            attention,
        )  # fmt: skip
        self.downsampling = patch_size * 2 ** (len(channel_mult) - 1)
        self.image_channel, self.num_classes = image_channel, num_classes
        self.model_channels, self.patch_size = model_channels, patch_size
        patch_channels = image_channel * patch_size**2
        width, time_width = model_channels, 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))

        def layers(in_channels: int, out_channels: int, size: int) -> list[nn.Module]:
            block = ResidualBlock(in_channels, out_channels, time_width, groups, dropout)
            return [block, AttentionBlock(out_channels, num_heads, groups)] if size in attention else [block]

        self.down_blocks = nn.ModuleList([Stage(Conv2d(patch_channels, width, 3, padding=1))])
        skips = [width]  # the channels of each output of down_blocks, which up_blocks concatenate in reverse order
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.down_blocks.append(Stage(*layers(width, model_channels * mult, sizes[level])))
                width = model_channels * mult
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.down_blocks.append(Stage(Downsample(width)))
                skips.append(width)

        self.middle_block = Stage(
            ResidualBlock(width, width, time_width, groups, dropout),
            AttentionBlock(width, num_heads, groups),
            ResidualBlock(width, width, time_width, groups, dropout),
        )

        self.up_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                stage = layers(width + skips.pop(), model_channels * mult, sizes[level])
                width = model_channels * mult
                if level > 0 and i == num_res_blocks:
                    stage.append(Upsample(width))
                self.up_blocks.append(Stage(*stage))

        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), Conv2d(width, patch_channels, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)
        self.label_embed = nn.Embedding(num_classes + 1, time_width) if num_classes else None  # the last: no label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: float (B, C, H, W); t: int64 (B,). Returns (B, C, H, W).

        labels: int64 (B,), from 0 to num_classes, which means no label; None: no labels. H and W may differ from
        image_size. Raises ValueError for another C, or for H or W that cannot be halved often enough.
        """
        B, C, H, W = x.shape
        if C != self.image_channel:
            raise ValueError(f"the network was built for {self.image_channel} channels and was given {C}")
        check_multiple(H, W, self.downsampling)
        emb = self._embedding(t, labels, x.dtype)
        skips = self._down(x, emb)
        x = self.middle_block(skips[-1], emb)
        for stage in self.up_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        x = self.out(x)
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x

    def features(self, x: Tensor) -> list[Tensor]:
        """What the way down and the middle make of pictures without noise: maps (B, C, h, w), the finest first.

        x: float (B, image_channel, H, W) in [-1, 1].
        """
        emb = self._embedding(torch.zeros(len(x), dtype=torch.int64, device=x.device), None, x.dtype)
        _, *maps = self._down(x, emb)
        return [*maps, self.middle_block(maps[-1], emb)]

    def _embedding(self, t: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Of timesteps and labels, int64 (B,): (B, 4 * model_channels)."""
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(dtype))
        if self.label_embed is not None or labels is not None:
            emb = emb + self.label_embed(torch.full_like(t, self.num_classes) if labels is None else labels)
        return emb

    def _down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The outputs of down_blocks."""
        x, outputs = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x, []
        for stage in self.down_blocks:
            x = stage(x, emb)
            outputs.append(x)
        return outputs


def _check(
    size: tuple[int, int], image_channel: int, model_channels: int, channel_mult: tuple[int, ...], num_res_blocks: int,
    num_heads: int, patch_size: int, groups: int, sizes: list[int], attention: tuple[int, ...] | list[int],
) -> None:  # fmt: skip
    """ValueError unless the arguments of a UNet fit together. sizes: of the feature maps; attention: those with it."""
    H, W = size
    if min(H, W, image_channel, model_channels, num_res_blocks, num_heads, *channel_mult) < 1 or not channel_mult:
        names = "image_size, image_channel, model_channels, channel_mult, num_res_blocks and num_heads"
        raise ValueError(f"{names} must all be at least 1")
    if patch_size & (patch_size - 1):
        raise ValueError(f"patch_size must be a power of 2, not {patch_size}")
    check_multiple(H, W, patch_size * 2 ** (len(channel_mult) - 1))
    if unknown := [side for side in attention if side not in sizes]:
        known = ", ".join(map(str, sizes))
        raise ValueError(f"attention_resolutions: no feature map is {unknown[0]} pixels wide; they are {known}")
    if model_channels % 2:
        raise ValueError(f"model_channels must be even for the time embedding, not {model_channels}")
    attended = [channel_mult[sizes.index(side)] for side in attention] + [channel_mult[-1]]  # the middle block's
    if wrong := [model_channels * mult for mult in sorted(attended) if model_channels * mult % num_heads]:
        raise ValueError(f"num_heads={num_heads} does not divide the {wrong[0]} channels of attention")
    if model_channels % groups:
        raise ValueError(f"norm_groups={groups} does not divide model_channels={model_channels}")
