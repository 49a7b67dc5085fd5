"""`DiffusersUNet`: a UNet2DModel of diffusers that our UNet cannot represent; and the recipe keys of one.

diffusers is an optional dependency: it is imported only when one of these functions needs it.
"""

import importlib
import inspect

import torch
from torch import Tensor, nn

from models.blocks import check_multiple, height_and_width
from models.unet import usual_norm_groups


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


def keywords_of(config: dict) -> dict:
    """The arguments of `UNet` that come closest to a UNet2DModel configuration; `is_ours` checks if they are exact.

    Raises ValueError for a network with another condition than class labels, whose pictures are not grey or RGB, whose
    times are Fourier features, or whose widths are not multiples of the first. The message names the setting.
    """
    size, channel = _plain(config["sample_size"]), config["in_channels"]
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]  # as in a recipe
    widths, levels = config["block_out_channels"], len(config["block_out_channels"])
    unsupported = {
        f"sample_size {size}": not isinstance(size, int) and not (isinstance(size, list) and len(size) == 2),
        f"in_channels {channel}": channel not in (1, 3),
        f"out_channels {config['out_channels']} with in_channels {channel}": config["out_channels"] != channel,
        f"class_embed_type {config['class_embed_type']}": config["class_embed_type"] is not None,
        f"time_embedding_type {config['time_embedding_type']}": config["time_embedding_type"] == "fourier",
        f"block_out_channels {list(widths)} (not all multiples of the first)": any(w % widths[0] for w in widths),
    }
    for setting, wrong in unsupported.items():
        if wrong:
            raise ValueError(f"{setting} cannot be represented here")
    shorter = min(height_and_width(size))
    attention = [shorter // 2**level for level in range(levels) if "Attn" in config["down_block_types"][level]]
    head_dim, groups = config["attention_head_dim"], config["norm_num_groups"]
    return {
        "image_size": size,
        "image_channel": channel,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": None if attention == [shorter // 2 ** (levels - 1)] else attention,
        "num_heads": max(1, widths[-1] // head_dim) if head_dim else 1,  # in the middle block
        "norm_groups": None if groups == usual_norm_groups(widths[0]) else groups,
        "dropout": config["dropout"],
        "patch_size": None,
        "num_classes": config["num_class_embeds"] and config["num_class_embeds"] - 1,
    }


def arguments() -> dict:
    """The names of all arguments of UNet2DModel, with their defaults."""
    parameters = inspect.signature(diffusers().UNet2DModel.__init__).parameters
    return {name: _plain(parameter.default) for name, parameter in parameters.items() if name != "self"}


def settings(config: dict) -> dict:
    """The entries that differ from the defaults, but for sample_size and dropout, which a recipe sets by itself."""
    changed = {name: _plain(config[name]) for name, default in arguments().items() if _plain(config[name]) != default}
    return {name: value for name, value in changed.items() if name not in ("sample_size", "dropout")}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


class DiffusersUNet(nn.Module):
    """Any UNet2DModel with the forward(x, t, labels) of our networks.

    diffusers_unet: its `settings`. keywords: the arguments of `UNet`, of which image_size and dropout can be chosen.
    Raises ValueError if the others disagree with `keywords_of`, or if no network can be built from the settings.
    """

    def __init__(self, diffusers_unet: dict, **keywords):
        super().__init__()
        chosen = {"sample_size": keywords["image_size"], "dropout": keywords["dropout"]}
        try:
            self.unet = diffusers().UNet2DModel(**diffusers_unet | chosen)
            expected = keywords_of(dict(self.unet.config))
        except Exception as error:  # diffusers checks little and raises many types
            raise ValueError(f"diffusers_unet: no network can be built from it: {error!r}") from error
        for key, value in expected.items():
            if keywords[key] not in (value, "auto"):  # num_classes, until the data are seen
                raise ValueError(f"{key} must be {value}, as in diffusers_unet, not {keywords[key]}")
        self.num_classes = expected["num_classes"]
        check_multiple(*height_and_width(keywords["image_size"]), 2 ** (len(expected["channel_mult"]) - 1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: float (B, C, H, W); t, labels: int64 (B,), see `UNet.forward`. Returns (B, C, H, W)."""
        if self.num_classes and labels is None:
            labels = torch.full_like(t, self.num_classes)
        return self.unet(x, t, class_labels=labels).sample
