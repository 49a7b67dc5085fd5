"""diffusers' UNet2DModel: what our UNet is called there, and networks of its kinds that ours is not.

diffusers is asked for where one of these is built, and nowhere else.
"""

import importlib
import inspect

from torch import Tensor, nn

from models.unet import AttentionBlock, Downsample, ResidualBlock, UNet, Upsample, usual_norm_groups


def diffusers():
    """The library, quiet. Raises ValueError, with what to install, where it is missing or cannot be loaded."""
    try:
        library = importlib.import_module("diffusers")
        assert library.UNet2DModel  # its parts are loaded when they are asked for
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"this takes diffusers, which cannot be loaded ({reason}): pip install diffusers") from error
    library.logging.set_verbosity_error()
    return library


def configuration(keywords: dict) -> dict:
    """The UNet2DModel arguments of the network that is UNet(**keywords) here.

    Raises ValueError for attention at several widths with several heads: diffusers has one attention_head_dim.
    """
    width, mult, channel = keywords["model_channels"], keywords["channel_mult"], keywords["image_channel"]
    size, levels, heads = keywords["image_size"], len(mult), keywords["num_heads"]
    at = keywords["attention_resolutions"]
    attended = [level == levels - 1 if at is None else size // 2**level in at for level in range(levels)]
    widths = {width * mult[-1]} | {width * m for m, here in zip(mult, attended, strict=True) if here}
    if heads > 1 and len(widths) > 1:
        raise ValueError(
            f"attention at {len(widths)} widths ({', '.join(map(str, sorted(widths)))} channels) with {heads} heads at "
            "each cannot be said in UNet2DModel, which has one attention_head_dim"
        )
    return {
        "sample_size": size,
        "in_channels": channel,
        "out_channels": channel,
        "block_out_channels": [width * m for m in mult],
        "layers_per_block": keywords["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        "attention_head_dim": width * mult[-1] // heads if heads > 1 else None,
        "norm_num_groups": keywords["norm_groups"] or usual_norm_groups(width),
        "dropout": keywords["dropout"],
    }


def keywords_of(config: dict) -> dict:
    """Our keywords for a UNet2DModel configuration, as far as they can say it; `is_ours` knows whether that is all.

    Raises ValueError, by name, for what no unconditional network of square grey or RGB pictures has.
    """
    size, channel = _square(config["sample_size"]), config["in_channels"]
    widths, levels = config["block_out_channels"], len(config["block_out_channels"])
    refused = {
        f"sample_size {size}": not isinstance(size, int),
        f"time_embedding_type {config['time_embedding_type']}": config["time_embedding_type"] != "positional",
        f"in_channels {channel}": channel not in (1, 3),
        f"out_channels {config['out_channels']} (of in_channels {channel})": config["out_channels"] != channel,
        f"class_embed_type {config['class_embed_type']}": config["class_embed_type"] is not None,
        f"num_class_embeds {config['num_class_embeds']}": config["num_class_embeds"] is not None,
        f"block_out_channels {list(widths)}, no multiples of the first,": any(w % widths[0] for w in widths),
    }
    for what, wrong in refused.items():
        if wrong:
            raise ValueError(f"{what} cannot be represented here")
    attended = [size // 2**level for level in range(levels) if "Attn" in config["down_block_types"][level]]
    head_dim, groups = config["attention_head_dim"], config["norm_num_groups"]
    return {
        "image_size": size,
        "image_channel": channel,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": None if attended == [size // 2 ** (levels - 1)] else attended,
        "num_heads": max(1, widths[-1] // head_dim) if head_dim else 1,  # in the middle, where the width is that
        "norm_groups": None if groups == usual_norm_groups(widths[0]) else groups,
        "dropout": config["dropout"],
    }


def is_ours(network: nn.Module) -> bool:
    """Whether our UNet computes what this UNet2DModel does: the same arguments, and no bias where ours has none."""
    try:
        twin = type(network)(**configuration(keywords_of(dict(network.config))))
    except ValueError:
        return False
    same = settings(dict(twin.config)) == settings(dict(network.config))
    return same and not any(bias.any() for bias in qkv_biases(network))


def arguments() -> dict:
    """All that a UNet2DModel may be given, by name, with what it takes otherwise."""
    parameters = inspect.signature(diffusers().UNet2DModel.__init__).parameters
    return {name: _plain(parameter.default) for name, parameter in parameters.items() if name != "self"}


def settings(config: dict) -> dict:
    """What a configuration has of its own, plain: no defaults, and neither size nor dropout, which a recipe chooses."""
    own = {name: _plain(config[name]) for name, usual in arguments().items() if _plain(config[name]) != usual}
    return {name: value for name, value in own.items() if name not in ("sample_size", "dropout")}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _square(size):
    """One number for two that are equal."""
    return size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size


def sections(network: nn.Module) -> list[nn.Module]:
    """The parts of a UNet2DModel, in the order in which ours has them."""
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def qkv_biases(network: nn.Module) -> list[Tensor]:
    """Biases of a UNet2DModel that our UNet does not have."""
    blocks = [block for section in sections(network) for block in getattr(section, "attentions", None) or []]
    return [linear.bias for block in blocks for linear in (block.to_q, block.to_k, block.to_v)]


def paired_tensors(ours: UNet, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Views of every weight of our UNet beside those of the UNet2DModel of its `configuration`.

    Copying one to the other, whichever way, and with `qkv_biases` at 0, makes the networks equal.
    """
    modules = [(ours.down_blocks[0][0], theirs.conv_in), (ours.out[0], theirs.conv_norm_out)]
    modules += [(ours.out[2], theirs.conv_out)]
    modules += [
        (ours.time_embed[0], theirs.time_embedding.linear_1),
        (ours.time_embed[2], theirs.time_embedding.linear_2),
    ]
    for block, peer in _alike(ours, ResidualBlock, theirs, "resnets"):
        modules += [(block.conv1[0], peer.norm1), (block.conv1[2], peer.conv1), (block.time_emb[1], peer.time_emb_proj)]
        modules += [(block.conv2[0], peer.norm2), (block.conv2[3], peer.conv2)]
        if peer.conv_shortcut is not None:
            modules.append((block.shortcut, peer.conv_shortcut))
    modules += [(block.op, peer.conv) for block, peer in _alike(ours, Downsample, theirs, "downsamplers")]
    modules += [(block.conv, peer.conv) for block, peer in _alike(ours, Upsample, theirs, "upsamplers")]
    pairs = []
    for block, peer in _alike(ours, AttentionBlock, theirs, "attentions"):
        C, heads = block.proj.out_channels, block.num_heads
        modules.append((block.norm, peer.group_norm))
        ours_qkv = block.qkv.weight.view(heads, 3, C // heads, C).unbind(1)  # head by head: q, k, v
        theirs_qkv = [linear.weight.view(heads, C // heads, C) for linear in (peer.to_q, peer.to_k, peer.to_v)]
        pairs += zip(ours_qkv, theirs_qkv, strict=True)
        pairs += [(block.proj.weight.view(C, C), peer.to_out[0].weight), (block.proj.bias, peer.to_out[0].bias)]
    return pairs + [pair for one, other in modules for pair in zip(one.parameters(), other.parameters(), strict=True)]


def _alike(ours: UNet, kind: type, theirs: nn.Module, name: str) -> list[tuple[nn.Module, nn.Module]]:
    mine = [module for module in ours.modules() if isinstance(module, kind)]
    peers = [peer for section in sections(theirs) for peer in getattr(section, name, None) or []]
    return list(zip(mine, peers, strict=True))


class DiffusersUNet(nn.Module):
    """A UNet2DModel of any kind behind forward(x, t).

    diffusers_unet: its `settings`. image_size and dropout may be chosen; the other keywords must be what `keywords_of`
    says, for nothing but the settings decides. ValueError where they are not, or where no network can be built.
    """

    def __init__(self, diffusers_unet: dict, **keywords):
        super().__init__()
        if unknown := sorted(set(diffusers_unet) - set(arguments())):
            raise ValueError(f"diffusers_unet: this diffusers does not know {', '.join(map(str, unknown))}")
        chosen = {"sample_size": keywords["image_size"], "dropout": keywords["dropout"]}
        try:
            self.unet = diffusers().UNet2DModel(**diffusers_unet | chosen)
            told = keywords_of(dict(self.unet.config))
        except Exception as error:  # it checks little, and so fails in many ways
            raise ValueError(f"diffusers_unet: no network can be built of it: {error!r}") from error
        for key, value in told.items():
            if keywords[key] != value:
                raise ValueError(f"{key} is {value} in this diffusers_unet, and cannot be {keywords[key]}")
        self.image_channel, factor = told["image_channel"], 2 ** (len(told["channel_mult"]) - 1)
        if keywords["image_size"] % factor:
            raise ValueError(f"image_size {keywords['image_size']} does not fit: it must be a multiple of {factor}")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: float (B, C, H, W), t: int64 (B,), returns (B, C, H, W)."""
        if x.shape[1] != self.image_channel:
            raise ValueError(f"the network was built for {self.image_channel} channels and was given {x.shape[1]}")
        return self.unet(x, t).sample
