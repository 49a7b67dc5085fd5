"""config.yaml and --set to a recipe: one flat, plain, validated dict that says everything about a run.

Order, low to high: the defaults below (which config.yaml's Train_Setting spells out), Train_Setting, the
chain of `base`, the data set's own block, --set.
"""

import difflib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from datasets import LOADERS, SPLITS
from diffusion import SampleSpec
from diffusion.gaussian import LOSS_TYPES, LOSS_WEIGHTS, OBJECTIVES
from diffusion.schedule import BETA_SCHEDULES
from utils.errors import ConfigError
from utils.optimizer import LR_SCHEDULES


@dataclass(frozen=True)
class Key:
    """A key's type (or its allowed values), default and least value. A default of None also allows null."""

    kind: type | tuple[str, ...]
    default: object
    least: float | None = None
    most: float | None = None


MODEL_KEYS = {
    "image_size": Key(int, 32, 1),
    "image_channel": Key(int, 3, 1),
    "model_channels": Key(int, 128, 2),
    "channel_mult": Key(list, [1, 2, 2, 2], 1),
    "num_res_blocks": Key(int, 2, 1),
    "attention_resolutions": Key(list, None, 1),
    "num_heads": Key(int, 4, 1),
    "dropout": Key(float, 0.0, 0, 0.999),
    "norm_groups": Key(int, None, 1),
    "diffusers_unet": Key(dict, None),
}
DIFFUSION_KEYS = {
    "timestep_num": Key(int, 1000, 1, 100_000),
    "beta_schedule": Key(tuple(BETA_SCHEDULES), "cosine"),
    "loss_type": Key(LOSS_TYPES, "l1"),
    "objective": Key(OBJECTIVES, "pred_noise"),
    "loss_weight": Key(LOSS_WEIGHTS, "none"),
    "clip_denoised": Key(bool, True),
}
KEYS = {
    # data
    "data_path": Key(str, None),
    "split": Key(SPLITS, "train"),
    "horizontal_flip": Key(bool, False),
    "sample_num": Key(int, 100, 1, 10_000),
    "save_dir": Key(str, "train_results"),
    "pth_save_name": Key(str, None),
    **MODEL_KEYS,
    **DIFFUSION_KEYS,
    # loop
    "init_from": Key(str, None),
    "batch_size": Key(int, 64, 1),
    "train_epoch": Key(int, 100, 1),
    "max_steps": Key(int, None, 1),
    "learning_rate": Key(float, 1e-4, 0, 1000),
    "Adam_beta1": Key(float, 0.9, 0, 0.999999),
    "Adam_beta2": Key(float, 0.99, 0, 0.999999),
    "ema_decay": Key(float, 0.9999, 0, 1),
    "grad_clip": Key(float, None, 1e-9),
    "warmup_steps": Key(int, 0, 0),
    "lr_schedule": Key(LR_SCHEDULES, "constant"),
    "gradient_accumulation": Key(int, 1, 1),
    "seed": Key(int, 0, 0, 2**63 - 1),
    "precision": Key(("auto", "fp32", "bf16"), "auto"),
    "compile": Key(("auto", True, False), "auto"),
    "num_workers": Key(int, None, 0, 64),
    "log_every": Key(int, 50, 1),
    "save_every": Key(int, 1000, 1),
    "keep_checkpoints": Key(int, 2, 1, 1000),
    "sample_every": Key(int, 5000, 1),
    "preview_info": Key(str, "DDIM_25_0p0"),
}
# What may differ when a run goes on: how long it goes, where it stands and how it is computed, what it shows, and what
# one turns when it goes wrong.
RESUMABLE = {
    "data_path", "save_dir", "pth_save_name", "sample_num", "train_epoch", "max_steps",
    "learning_rate", "warmup_steps", "lr_schedule", "grad_clip", "gradient_accumulation", "precision", "compile",
    "num_workers", "log_every", "save_every", "keep_checkpoints", "sample_every", "preview_info",
}  # fmt: skip


def load_recipe(
    config: Path,
    data_name: str,
    overrides: Sequence[str] = (),
    flags: dict | None = None,
    pretrained: Callable[[str], dict] | None = None,
) -> dict:
    """The resolved recipe of one Train_Data block; overrides are "KEY=VALUE" texts, flags single keys.

    pretrained: gives the recipe of the weights that init_from names, whose network and diffusion then stand over the
    block's (and below --set).

    Raises ConfigError for an unknown block or key (with the nearest known one), a wrong type or value,
    a duplicate, a cycle of bases, and whatever makes model and diffusion impossible.
    """
    content = _read_yaml(config)
    blocks = {str(k): v for k, v in _mapping(content.get("Train_Data"), f"{config}: Train_Data").items()}
    layers, chain = [], [data_name]
    while True:
        name = chain[-1]
        if name not in blocks:
            where = "data_name" if len(chain) == 1 else f"Train_Data.{chain[-2]}: base"
            raise ConfigError(f"{where}: {_unknown(name, blocks)} in {config}")
        block = _mapping(blocks[name], f"{config}: Train_Data.{name}")
        layers.append((f"{config}: Train_Data.{name}", {k: v for k, v in block.items() if k != "base"}))
        if "base" not in block:
            break
        chain.append(str(block["base"]))
        if chain[-1] in chain[:-1]:
            raise ConfigError(f"{config}: Train_Data: the bases run in a circle: {' -> '.join(chain)}")
    layers.append((f"{config}: Train_Setting", _mapping(content.get("Train_Setting"), f"{config}: Train_Setting")))
    layers.insert(0, ("--set", _parse_overrides(overrides) | (flags or {})))

    layers = [(where, {key: _coerce(where, key, value) for key, value in layer.items()}) for where, layer in layers]
    init_from = next((layer["init_from"] for _, layer in layers if "init_from" in layer), None)
    if init_from and pretrained:
        theirs = pretrained(init_from)
        layers.insert(1, (init_from, {key: theirs[key] for key in [*MODEL_KEYS, *DIFFUSION_KEYS]}))
    values = {key: value for _, layer in reversed(layers) for key, value in layer.items()}
    dataset = next((name for name in chain if name in LOADERS), "Folder")
    recipe = {"data_name": data_name, "dataset": dataset} | {k: values.get(k, KEYS[k].default) for k in KEYS}
    if recipe["pth_save_name"] is None:
        recipe["pth_save_name"] = data_name.lower()
    if recipe["data_path"] is None:
        if dataset == "Folder":
            raise ConfigError(f"{config}: Train_Data.{data_name} needs a data_path: the folder with its pictures")
        recipe["data_path"] = f"data/{dataset.lower()}"
    recipe |= {key: os.path.expanduser(recipe[key]) for key in ("data_path", "save_dir")}
    return check_recipe(recipe, str(config))


def plain_recipe(name: str, **keys) -> dict:
    """The recipe of weights that came without one: a folder of pictures, and every key as usual but these."""
    recipe = {"data_name": name, "dataset": "Folder"} | {key: KEYS[key].default for key in KEYS}
    recipe |= {"data_path": f"data/{name.lower()}", "pth_save_name": name.lower()} | keys
    recipe["preview_info"] = f"DDIM_{min(25, recipe['timestep_num'])}_0p0"
    return check_recipe(recipe, name)


def check_recipe(recipe: dict, where: str) -> dict:
    """A recipe, also one out of a checkpoint, with every value coerced; ConfigError names `where` it is wrong."""
    checked = {k: v if k in ("data_name", "dataset") else _coerce(where, k, v) for k, v in recipe.items()}
    if not isinstance(checked["dataset"], str) or checked["dataset"] not in LOADERS:
        raise ConfigError(f"{where}: dataset: {_unknown(checked['dataset'], LOADERS)}")
    for key in ("data_path", "pth_save_name"):
        if checked[key] is None:
            raise ConfigError(f"{where}: {key} must be a text, not null")
    if checked["image_channel"] not in (1, 3):
        raise ConfigError(f"{where}: image_channel must be 1 (grey) or 3 (RGB), not {checked['image_channel']}")
    if checked["channel_mult"] == []:
        raise ConfigError(f"{where}: channel_mult needs a number a level, such as [1, 2, 2, 2]")
    if checked["pth_save_name"] != Path(checked["pth_save_name"]).name or checked["pth_save_name"] == "..":
        raise ConfigError(f"{where}: pth_save_name must be a plain name, not {checked['pth_save_name']!r}")
    parse_spec(checked["preview_info"], checked["timestep_num"], f"{where}: preview_info")
    return checked


def parse_spec(text: str, timestep_num: int, where: str) -> SampleSpec:
    """A sample_info text as a SampleSpec that fits timestep_num, or ConfigError."""
    try:
        spec = SampleSpec.parse(text)
        spec.timesteps(timestep_num)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return spec


def changed_keys(old: dict, new: dict, among: set[str]) -> list[str]:
    """The keys of two recipes that differ: "key: was …, is …" for each."""
    keys = [key for key in new if (key in among or key not in KEYS) and old.get(key) != new[key]]
    return [f"{key}: was {old.get(key)}, is {new[key]}" for key in keys]


def _read_yaml(config: Path) -> dict:
    try:
        with open(config, encoding="utf-8") as stream:
            content = yaml.load(stream, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # YAML's own dates and numbers raise ValueError
        raise ConfigError(f"{config}: {error}") from error
    content = _mapping(content, str(config))
    for key in content:
        if key not in ("Train_Setting", "Train_Data"):
            raise ConfigError(f"{config}: {_unknown(key, ('Train_Setting', 'Train_Data'))}")
    return content


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice, where YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_overrides(texts: Sequence[str]) -> dict:
    """KEY=VALUE texts as a dict: a text key takes its value as it stands, any other as YAML."""
    values = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(f"--set {text}: write it as KEY=VALUE")
        if key in values:
            raise ConfigError(f"--set {text}: {key} is set twice")
        try:
            is_text = key in KEYS and KEYS[key].kind is str and value != "null"
            values[key] = value if is_text else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {text}: {error}") from error
    return values


def _coerce(where: str, name: str, value):
    """The value as the key's type: YAML reads 1e-4 as text and a lone 4 where a list is meant as a number."""
    if name not in KEYS:
        raise ConfigError(f"{where}: {_unknown(name, KEYS)}")
    key = KEYS[name]
    if value is None and key.default is None:
        return None
    wrong = ConfigError(f"{where}: {name} must be {_describe(key)}, not {value!r}")
    if isinstance(key.kind, tuple):
        if not any(value == allowed and type(value) is type(allowed) for allowed in key.kind):  # 1 == True
            raise wrong
        return value
    if key.kind in (bool, str, dict):
        if not isinstance(value, key.kind) or value in ("", {}):
            raise wrong
        return value
    if key.kind is list:
        items = value if isinstance(value, list | tuple) else str(value).split(",")
        return [_number(item, Key(int, None, key.least), wrong) for item in items]
    return _number(value, key, wrong)


def _number(value, key: Key, wrong: ConfigError) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        number = value if isinstance(value, int) and key.kind is int else float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if (isinstance(number, float) and not math.isfinite(number)) or number != key.kind(number):
        raise wrong
    if (key.least is not None and number < key.least) or (key.most is not None and number > key.most):
        raise wrong
    return key.kind(number)


def _describe(key: Key) -> str:
    if isinstance(key.kind, tuple):
        return "one of " + ", ".join(str(value).lower() for value in key.kind)
    text = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        list: "a list of whole numbers",
        dict: "a block of KEY: VALUE lines",
    }
    ends = [f"at least {key.least:g}"] if key.least is not None else []
    ends += [f"at most {key.most:g}"] if key.most is not None else []
    return " ".join([text[key.kind], " and ".join(ends)]).strip() + (" or null" if key.default is None else "")


def _mapping(value, where: str) -> dict:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a block of KEY: VALUE lines, not {type(value).__name__}")
    return value


def _unknown(name, known) -> str:
    near = difflib.get_close_matches(str(name), list(map(str, known)), 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(map(str, known))}"
    return f"{name!r} is not known{hint}"
