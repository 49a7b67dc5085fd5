"""The critic: it learns to tell the pictures of one network from those of another, by a third one's features."""

import math

from torch import Tensor, nn

WIDTH = 64


class Critic(nn.Module):
    """For each position of some maps of features a number, larger where the picture looks real for its class.

    Each map has three convolutions of its own, of which one sees 3x3 positions. The maps come from a frozen network,
    so that few steps are enough to learn from (Sauer et al. 2021, "projected GANs"). A class adds a linear function of
    what the last convolution sees (Miyato & Koyama 2018).

    maps: as the critic will see them, the finest first; it leaves out the coarsest, of whole figures rather than of
    detail. num_classes: 0 without labels.
    """

    def __init__(self, maps: list[Tensor], num_classes: int):
        super().__init__()
        coarsest = maps[-1].shape[-1]
        channels = [features.shape[1] for features in maps if features.shape[-1] > coarsest or maps[0] is features]
        self.seen = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(math.gcd(width, 8), width, affine=False),
                nn.Conv2d(width, WIDTH, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
            )
            for width in channels
        )
        self.judged = nn.ModuleList(nn.Conv2d(WIDTH, 1, 1, bias=False) for _ in channels)
        self.of_class = nn.ModuleList(nn.Embedding(num_classes, WIDTH) for _ in channels) if num_classes else None

    def forward(self, maps: list[Tensor], labels: Tensor | None) -> list[Tensor]:
        """maps: float (B, channels, h, w) each; labels: int64 (B,) or None. Returns (B, h * w) of each that counts."""
        judged = []
        for i in range(len(self.seen)):
            seen = self.seen[i](maps[i])
            judged.append(self.judged[i](seen).flatten(1))
            if labels is not None:
                judged[-1] = judged[-1] + (seen * self.of_class[i](labels)[:, :, None, None]).mean(1).flatten(1)
        return judged
