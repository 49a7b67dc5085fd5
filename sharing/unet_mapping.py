"""Our UNet as a UNet2DModel of diffusers: the same settings under other names, and the pairs of their weights."""

from torch import Tensor, nn

from models.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, height_and_width
from models.diffusers_unet import keywords_of, settings
from models.unet import UNet, usual_norm_groups


def configuration(keywords: dict) -> dict:
    """The arguments of UNet2DModel for the network that is UNet(**keywords) here. keywords: all arguments of `UNet`.

    Raises ValueError for a patch_size, and for several heads at levels of different widths.
    """
    if (keywords["patch_size"] or 1) > 1:
        raise ValueError(f"patch_size={keywords['patch_size']} cannot be represented in UNet2DModel")
    width, mult, heads = keywords["model_channels"], keywords["channel_mult"], keywords["num_heads"]
    attention, levels = keywords["attention_resolutions"], len(mult)
    side = min(height_and_width(keywords["image_size"]))
    attends = [level == levels - 1 if attention is None else side // 2**level in attention for level in range(levels)]
    widths = {width * mult[-1]} | {width * m for m, here in zip(mult, attends, strict=True) if here}
    if heads > 1 and len(widths) > 1:
        of = f"{len(widths)} widths ({', '.join(map(str, sorted(widths)))} channels) with {heads} heads each"
        raise ValueError(f"attention at {of} cannot be represented in UNet2DModel, which has one attention_head_dim")
    return {
        "sample_size": keywords["image_size"],
        "in_channels": keywords["image_channel"],
        "out_channels": keywords["image_channel"],
        "block_out_channels": [width * m for m in mult],
        "layers_per_block": keywords["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "attention_head_dim": width * mult[-1] // heads if heads > 1 else None,
        "norm_num_groups": keywords["norm_groups"] or usual_norm_groups(width),
        "dropout": keywords["dropout"],
        "num_class_embeds": keywords["num_classes"] and keywords["num_classes"] + 1,  # the last: no label
    }


def is_ours(network: nn.Module) -> bool:
    """Whether our UNet computes the same: its `configuration` has these settings, and biases that it lacks are 0."""
    try:
        closest = type(network)(**configuration(keywords_of(dict(network.config))))
    except ValueError:
        return False
    same = settings(dict(closest.config)) == settings(dict(network.config))
    return same and not any(bias.any() for bias in qkv_biases(network))


def qkv_biases(network: nn.Module) -> list[Tensor]:
    """The biases of query, key and value in a UNet2DModel, which our UNet lacks. Each (C,)."""
    blocks = [block for block in network.modules() if hasattr(block, "to_q")]
    return [linear.bias for block in blocks for linear in (block.to_q, block.to_k, block.to_v)]


def paired_tensors(ours: UNet, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs) of all parameters of our UNet and of the UNet2DModel with its `configuration`.

    They are views of equal shape. With one network copied to the other, and `qkv_biases` of 0, both compute the same.
    """
    modules = [
        (ours.down_blocks[0][0], theirs.conv_in),
        (ours.out[0], theirs.conv_norm_out),
        (ours.out[2], theirs.conv_out),
        (ours.time_embed[0], theirs.time_embedding.linear_1),
        (ours.time_embed[2], theirs.time_embedding.linear_2),
    ]
    for block, peer in _paired_modules(ours, ResidualBlock, theirs, "resnets"):
        modules += [(block.conv1[0], peer.norm1), (block.conv1[2], peer.conv1), (block.time_emb[1], peer.time_emb_proj)]
        modules += [(block.conv2[0], peer.norm2), (block.conv2[3], peer.conv2)]
        if peer.conv_shortcut is not None:
            modules.append((block.shortcut, peer.conv_shortcut))
    modules += [(block.op, peer.conv) for block, peer in _paired_modules(ours, Downsample, theirs, "downsamplers")]
    modules += [(block.conv, peer.conv) for block, peer in _paired_modules(ours, Upsample, theirs, "upsamplers")]
    modules += [(ours.label_embed, theirs.class_embedding)] if ours.label_embed else []
    pairs = []
    for block, peer in _paired_modules(ours, AttentionBlock, theirs, "attentions"):
        C, heads = block.proj.out_channels, block.num_heads
        modules.append((block.norm, peer.group_norm))
        ours_qkv = block.qkv.weight.view(heads, 3, C // heads, C).unbind(1)  # q, k, v, each (heads, C/heads, C)
        theirs_qkv = [linear.weight.view(heads, C // heads, C) for linear in (peer.to_q, peer.to_k, peer.to_v)]
        pairs += zip(ours_qkv, theirs_qkv, strict=True)
        pairs += [(block.proj.weight.view(C, C), peer.to_out[0].weight), (block.proj.bias, peer.to_out[0].bias)]
    return pairs + [pair for one, other in modules for pair in zip(one.parameters(), other.parameters(), strict=True)]


def _paired_modules(ours: UNet, kind: type, theirs: nn.Module, name: str) -> list[tuple[nn.Module, nn.Module]]:
    """Our modules of one type, each with its counterpart among the modules `name` of their sections."""
    mine = [module for module in ours.modules() if isinstance(module, kind)]
    sections = [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]
    peers = [peer for section in sections for peer in getattr(section, name, None) or []]
    return list(zip(mine, peers, strict=True))
