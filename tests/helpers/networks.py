"""Networks with random weights, and a second implementation of the published network."""

import torch
import torch.nn.functional as F

from runs.network import build
from runs.recipe import plain_recipe
from runs.run import Run


def randomise(model, seed=0):
    """Draws every parameter, also the zeros of the output convolution; matrices are scaled by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=p[0].numel() ** -0.5, generator=generator)
    return model


def noisy(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def published_unet(p, x, emb):
    """The published network without modules, from its state dict `p` alone.

    x: (B, C, H, W); emb: the sinusoids of t, (B, model_channels). Every GroupNorm has 32 groups.
    """

    def norm(x, name):
        return F.group_norm(x, 32, p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5)

    def conv(x, name, padding=1, stride=1):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=padding, stride=stride)

    def residual(x, name):
        h = conv(F.silu(norm(x, f"{name}.conv1.0")), f"{name}.conv1.2")
        time = F.linear(F.silu(emb), p[f"{name}.time_emb.1.weight"], p[f"{name}.time_emb.1.bias"])
        h = h + time[:, :, None, None]
        h = conv(F.silu(norm(h, f"{name}.conv2.0")), f"{name}.conv2.3")
        return h + (conv(x, f"{name}.shortcut", padding=0) if f"{name}.shortcut.weight" in p else x)

    def attention(x, name, heads=4):
        B, C, H, W = x.shape
        d = C // heads
        qkv = F.conv2d(norm(x, f"{name}.norm"), p[f"{name}.qkv.weight"]).reshape(B, 3 * C, H * W)
        results = []
        for head in range(heads):
            q, k, v = qkv[:, 3 * d * head : 3 * d * (head + 1)].split(d, dim=1)  # each (B, d, H*W)
            scores = torch.exp(torch.einsum("bdi,bdj->bij", q, k) / d**0.5)  # from position i to position j
            results.append(torch.einsum("bij,bdj->bdi", scores / scores.sum(2, keepdim=True), v))
        return x + conv(torch.cat(results, dim=1).reshape(B, C, H, W), f"{name}.proj", padding=0)

    def down(x, name):
        return conv(x, f"{name}.op", stride=2)

    def up(x, name):
        return conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), f"{name}.conv")

    emb = F.linear(emb, p["time_embed.0.weight"], p["time_embed.0.bias"])
    emb = F.linear(F.silu(emb), p["time_embed.2.weight"], p["time_embed.2.bias"])

    d0 = conv(x, "down_blocks.0.0")
    d1 = residual(d0, "down_blocks.1.0")
    d2 = residual(d1, "down_blocks.2.0")
    d3 = down(d2, "down_blocks.3.0")
    d4 = residual(d3, "down_blocks.4.0")
    d5 = residual(d4, "down_blocks.5.0")
    d6 = down(d5, "down_blocks.6.0")
    d7 = residual(d6, "down_blocks.7.0")
    d8 = residual(d7, "down_blocks.8.0")
    d9 = down(d8, "down_blocks.9.0")
    d10 = attention(residual(d9, "down_blocks.10.0"), "down_blocks.10.1")
    d11 = attention(residual(d10, "down_blocks.11.0"), "down_blocks.11.1")

    h = residual(d11, "middle_block.0")
    h = attention(h, "middle_block.1")
    h = residual(h, "middle_block.2")

    h = attention(residual(torch.cat([h, d11], dim=1), "up_blocks.0.0"), "up_blocks.0.1")
    h = attention(residual(torch.cat([h, d10], dim=1), "up_blocks.1.0"), "up_blocks.1.1")
    h = attention(residual(torch.cat([h, d9], dim=1), "up_blocks.2.0"), "up_blocks.2.1")
    h = up(h, "up_blocks.2.2")
    h = residual(torch.cat([h, d8], dim=1), "up_blocks.3.0")
    h = residual(torch.cat([h, d7], dim=1), "up_blocks.4.0")
    h = up(residual(torch.cat([h, d6], dim=1), "up_blocks.5.0"), "up_blocks.5.1")
    h = residual(torch.cat([h, d5], dim=1), "up_blocks.6.0")
    h = residual(torch.cat([h, d4], dim=1), "up_blocks.7.0")
    h = up(residual(torch.cat([h, d3], dim=1), "up_blocks.8.0"), "up_blocks.8.1")
    h = residual(torch.cat([h, d2], dim=1), "up_blocks.9.0")
    h = residual(torch.cat([h, d1], dim=1), "up_blocks.10.0")
    h = residual(torch.cat([h, d0], dim=1), "up_blocks.11.0")
    return conv(F.silu(norm(h, "out.0")), "out.2")


def small_run(**keys):
    """A run whose UNet is small and has random weights; keys: of its recipe."""
    small = {"image_size": 16, "model_channels": 16, "channel_mult": [1, 2, 2], "num_res_blocks": 1}
    recipe = plain_recipe("Sprites", **small | keys)
    model, diffusion = build(recipe)
    return Run(randomise(model).eval(), diffusion, recipe, 1234, "ema")
