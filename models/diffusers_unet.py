"""Our UNet as a UNet2DModel of diffusers, and `DiffusersUNet` for a UNet2DModel that our UNet cannot represent.

diffusers is an optional dependency: it is imported only when one of these functions needs it.
"""

import importlib
import inspect

import torch
from torch import Tensor, nn

from models.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample
from models.unet import UNet, usual_norm_groups

MOST, MOST_LAYERS = 1_000_000, 64  # the largest number in a configuration, and of layers or levels


def diffusers():
    """The diffusers library, set to log only errors. ValueError, with the install command, if it cannot be imported."""
    try:
        library = importlib.import_module("diffusers")
        assert library.UNet2DModel  # diffusers imports its parts on first access, and errors appear only then
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"this needs diffusers, which cannot be imported ({reason}): pip install diffusers") from error
    library.logging.set_verbosity_error()
    return library


def configuration(keywords: dict) -> dict:
    """The arguments of UNet2DModel for the network that is UNet(**keywords) here. keywords: all arguments of `UNet`.

    Raises ValueError for several heads and attention at levels of different widths, because diffusers has one
    attention_head_dim for all levels, and for a patch_size.
    """
    if (keywords["patch_size"] or 1) > 1:
        raise ValueError(f"patch_size={keywords['patch_size']} cannot be represented in UNet2DModel")
    width, mult, channel = keywords["model_channels"], keywords["channel_mult"], keywords["image_channel"]
    size, levels, heads = keywords["image_size"], len(mult), keywords["num_heads"]
    attention = keywords["attention_resolutions"]
    attends = [level == levels - 1 if attention is None else size // 2**level in attention for level in range(levels)]
    widths = {width * mult[-1]} | {width * m for m, here in zip(mult, attends, strict=True) if here}
    if heads > 1 and len(widths) > 1:
        raise ValueError(
            f"attention at {len(widths)} widths ({', '.join(map(str, sorted(widths)))} channels) with {heads} heads "
            "each cannot be represented in UNet2DModel, which has one attention_head_dim for all levels"
        )
    return {
        "sample_size": size,
        "in_channels": channel,
        "out_channels": channel,
        "block_out_channels": [width * m for m in mult],
        "layers_per_block": keywords["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "attention_head_dim": width * mult[-1] // heads if heads > 1 else None,
        "norm_num_groups": keywords["norm_groups"] or usual_norm_groups(width),
        "dropout": keywords["dropout"],
        "num_class_embeds": keywords["num_classes"] and keywords["num_classes"] + 1,  # the last: no label
    }


def keywords_of(config: dict) -> dict:
    """The arguments of `UNet` that come closest to a UNet2DModel configuration; `is_ours` checks if they are exact.

    Raises ValueError for a network with another condition than class labels, whose pictures are not square and grey or
    RGB, or whose widths are not multiples of the first. The message names the setting.
    """
    size, channel = _one_size(config["sample_size"]), config["in_channels"]
    widths, levels = config["block_out_channels"], len(config["block_out_channels"])
    unsupported = {
        f"sample_size {size}": not isinstance(size, int),
        f"time_embedding_type {config['time_embedding_type']}": config["time_embedding_type"] != "positional",
        f"in_channels {channel}": channel not in (1, 3),
        f"out_channels {config['out_channels']} with in_channels {channel}": config["out_channels"] != channel,
        f"class_embed_type {config['class_embed_type']}": config["class_embed_type"] is not None,
        f"num_class_embeds {config['num_class_embeds']}": config["num_class_embeds"] in (0, 1),
        f"block_out_channels {list(widths)} (not all multiples of the first)": any(w % widths[0] for w in widths),
    }
    for setting, wrong in unsupported.items():
        if wrong:
            raise ValueError(f"{setting} cannot be represented here")
    attention = [size // 2**level for level in range(levels) if "Attn" in config["down_block_types"][level]]
    head_dim, groups = config["attention_head_dim"], config["norm_num_groups"]
    return {
        "image_size": size,
        "image_channel": channel,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": None if attention == [size // 2 ** (levels - 1)] else attention,
        "num_heads": max(1, widths[-1] // head_dim) if head_dim else 1,  # in the middle block
        "norm_groups": None if groups == usual_norm_groups(widths[0]) else groups,
        "dropout": config["dropout"],
        "patch_size": None,
        "num_classes": config["num_class_embeds"] and config["num_class_embeds"] - 1,
    }


def is_ours(network: nn.Module) -> bool:
    """Whether our UNet can compute the same as this UNet2DModel.

    It can if its `configuration` has the same settings and all biases that our UNet lacks are 0.
    """
    try:
        closest = type(network)(**configuration(keywords_of(dict(network.config))))
    except ValueError:
        return False
    same = settings(dict(closest.config)) == settings(dict(network.config))
    return same and not any(bias.any() for bias in qkv_biases(network))


def arguments() -> dict:
    """The names of all arguments of UNet2DModel, with their defaults."""
    parameters = inspect.signature(diffusers().UNet2DModel.__init__).parameters
    return {name: _plain(parameter.default) for name, parameter in parameters.items() if name != "self"}


def settings(config: dict) -> dict:
    """The entries of a configuration that differ from the defaults, with lists for tuples.

    Without sample_size and dropout, which a recipe sets with image_size and dropout.
    """
    changed = {name: _plain(config[name]) for name, default in arguments().items() if _plain(config[name]) != default}
    return {name: value for name, value in changed.items() if name not in ("sample_size", "dropout")}


def unallocated(config: dict) -> nn.Module:
    """A UNet2DModel on PyTorch's meta device: its weights have shapes, but take no memory.

    Raises ValueError for settings beyond any network: they may come from a foreign file, and layers take memory, too.
    """
    for name, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        most = MOST_LAYERS if name == "layers_per_block" else MOST
        if len(numbers) > MOST_LAYERS or any(isinstance(number, int) and number > most for number in numbers):
            raise ValueError(f"{name} is too large for a network: at most {most:,}, and {MOST_LAYERS} entries")
    with torch.device("meta"):
        return diffusers().UNet2DModel(**config)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _one_size(size):
    """(size, size) as one number; anything else unchanged."""
    return size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size


def sections(network: nn.Module) -> list[nn.Module]:
    """The down, middle and up blocks of a UNet2DModel, in the order of our UNet."""
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def qkv_biases(network: nn.Module) -> list[Tensor]:
    """The biases of query, key and value in a UNet2DModel, which our UNet lacks. Each (C,)."""
    blocks = [block for section in sections(network) for block in getattr(section, "attentions", None) or []]
    return [linear.bias for block in blocks for linear in (block.to_q, block.to_k, block.to_v)]


def paired_tensors(ours: UNet, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs) of all parameters of our UNet and of the UNet2DModel with its `configuration`.

    The tensors of a pair are views of equal shape. If one network is copied to the other in this way, and the
    `qkv_biases` are 0, both compute the same.
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
    peers = [peer for section in sections(theirs) for peer in getattr(section, name, None) or []]
    return list(zip(mine, peers, strict=True))


class DiffusersUNet(nn.Module):
    """Any unconditional UNet2DModel with the forward(x, t) of our networks.

    diffusers_unet: its `settings`.
    keywords: the arguments of `UNet`. image_size and dropout can be chosen. The others must agree with `keywords_of`,
        because the settings alone define the network.
    Raises ValueError if they disagree, if a setting is unknown or if no network can be built.
    """

    def __init__(self, diffusers_unet: dict, **keywords):
        super().__init__()
        if unknown := sorted(set(diffusers_unet) - set(arguments())):
            names = ", ".join(map(str, unknown))
            raise ValueError(f"diffusers_unet: the installed version of diffusers does not know {names}")
        chosen = {"sample_size": keywords["image_size"], "dropout": keywords["dropout"]}
        try:
            unallocated(diffusers_unet | chosen)
            self.unet = diffusers().UNet2DModel(**diffusers_unet | chosen)
            expected = keywords_of(dict(self.unet.config))
        except Exception as error:  # diffusers checks little and raises many types
            raise ValueError(f"diffusers_unet: no network can be built from it: {error!r}") from error
        if expected["num_classes"]:
            raise ValueError("num_class_embeds: this network can have no labels here, because it is not our UNet's")
        for key, value in expected.items():
            if keywords[key] != value:
                raise ValueError(f"{key} must be {value}, as in diffusers_unet, not {keywords[key]}")
        self.image_channel = expected["image_channel"]
        factor = 2 ** (len(expected["channel_mult"]) - 1)
        if keywords["image_size"] % factor:
            raise ValueError(f"image_size {keywords['image_size']} does not fit: it must be a multiple of {factor}")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: float (B, C, H, W); t: int64 (B,). Returns (B, C, H, W). ValueError for another C."""
        if x.shape[1] != self.image_channel:
            raise ValueError(f"the network was built for {self.image_channel} channels and was given {x.shape[1]}")
        return self.unet(x, t).sample
