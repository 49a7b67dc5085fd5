"""The diffusion transformer (DiT) of Peebles & Xie 2023: squares of the picture are the tokens of a transformer.

x (B, C, H, W)  ──▶  tokens (B, N, width) ──▶ blocks ──▶ out  (B, C, H, W)
t, labels (B,)  ──▶  emb (B, width): shifts, scales and gates of every block
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import check_multiple, height_and_width, timestep_embedding


class DiT(nn.Module):
    """Predicts what a `UNet` does, from a noisy picture and its timestep, without convolutions.

    image_size: height and width in pixels, as one number or (height, width), divisible by patch_size.
    image_channel: channels of the input and of the output, usually 1 or 3.
    model_channels: width of the tokens, divisible by 4 and by num_heads.
    num_heads: attention heads.
    dropout: its probability, in the MLP of each block.
    patch_size: a square of so many pixels a side is one token; None: 2. Twice the size is about a quarter of the work.
    num_classes: of the labels that are embedded and added to the time embedding; None: it sees no labels.
    depth: blocks, one after the other.
    Raises ValueError if these do not fit together.
    """

    def __init__(
        self, image_size: int | tuple[int, int] = 32, image_channel: int = 3, model_channels: int = 128,
        num_heads: int = 4, dropout: float = 0.0, patch_size: int | None = None, num_classes: int | None = None,
        depth: int = 12,
    ):  # fmt: skip
        super().__init__()
        size = height_and_width(image_size)
        width, patch_size = model_channels, patch_size or 2
        if min(*size, image_channel, width, num_heads, patch_size, depth) < 1:
            names = "image_size, image_channel, model_channels, num_heads, patch_size and depth"
            raise ValueError(f"{names} must all be at least 1")
        if width % 4 or width % num_heads:
            raise ValueError(f"model_channels={width} is not a multiple of 4 and of num_heads={num_heads}")
        check_multiple(*size, patch_size)
        self.image_channel, self.num_classes = image_channel, num_classes
        self.model_channels, self.patch_size = model_channels, patch_size
        patch_channels = image_channel * patch_size**2
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.patch_embed = nn.Linear(patch_channels, width)
        self.blocks = nn.ModuleList([Block(width, num_heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = modulation(width, 2)
        self.out = zeroed(nn.Linear(width, patch_channels))
        self.label_embed = nn.Embedding(num_classes + 1, width) if num_classes else None  # the last: no label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: float (B, C, H, W); t: int64 (B,). Returns (B, C, H, W).

        labels: int64 (B,), from 0 to num_classes, which means no label; None: no labels. H and W may differ from
        image_size. Raises ValueError for another C, or for H or W that patch_size does not divide.
        """
        B, C, H, W = x.shape
        if C != self.image_channel:
            raise ValueError(f"the network was built for {self.image_channel} channels and was given {C}")
        check_multiple(H, W, self.patch_size)
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))  # (B, width)
        if self.label_embed is not None or labels is not None:
            emb = emb + self.label_embed(torch.full_like(t, self.num_classes) if labels is None else labels)
        rows, columns = H // self.patch_size, W // self.patch_size
        positions = position_embedding(rows, columns, self.model_channels, x.device).to(x.dtype)
        x = F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2)  # (B, N, values); ONNX has no mT
        x = self.patch_embed(x) + positions  # float32 even in bfloat16's autocast, as all that the blocks add to it
        for block in self.blocks:
            x = block(x, emb)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (rows, columns)), self.patch_size)


class Block(nn.Module):
    """Self-attention and an MLP, each with a residual connection. (B, N, width), emb (B, width) -> (B, N, width).

    "adaLN-Zero": emb gives shift and scale after each norm, and the gate of each branch. All are 0 at first, so that a
    fresh block changes nothing.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)  # before both branches
        self.modulation = modulation(width, 6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        h = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(d)) v
        return self.proj(h.transpose(1, 2).flatten(2))


def modulation(width: int, count: int) -> nn.Module:
    """emb (B, width) -> shifts, scales and gates (B, count * width), all 0 at first."""
    return nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, count * width)))


def zeroed(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def position_embedding(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """The `timestep_embedding` of each token's row, then that of its column: float32 (rows * columns, width)."""
    of_row, of_column = (timestep_embedding(torch.arange(n, device=device), width // 2) for n in (rows, columns))
    return torch.cat([of_row.repeat_interleave(columns, dim=0), of_column.repeat(rows, 1)], dim=1)
