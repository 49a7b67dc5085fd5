"""The critic: it learns to tell the pictures of one network from those of another, by a third one's features."""

import math

from torch import Tensor, nn

WIDTH = 64


class Critic(nn.Module):
    """For each position of some maps of features a number, larger where the picture looks real.

    Each map has three convolutions of its own, of which one sees 3x3 positions. The maps come from a frozen network,
    so that few steps are enough to learn from (Sauer et al. 2021, "projected GANs").

    channels: of each map.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(math.gcd(width, 8), width, affine=False),
                nn.Conv2d(width, WIDTH, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(WIDTH, 1, 1),
            )
            for width in channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps: float (B, channels, h, w) each. Returns (B, h * w) each."""
        return [head(features).flatten(1) for head, features in zip(self.heads, maps, strict=True)]
