"""A recipe: one flat dict of plain values that describes a run completely. Its keys, and their allowed values."""

import difflib
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import LOADERS, SPLITS
from diffusion import GaussianDiffusion, SampleSpec
from diffusion.gaussian import LOSS_WEIGHTS, LOSSES, OBJECTIVES
from diffusion.schedule import BETA_SCHEDULES
from models import UNet
from utils.device import PRECISIONS
from utils.errors import ConfigError, short

LONGEST, NODES, MANY = 32, 1000, 10**12  # entries of a list, values in a block of lines, steps or epochs


@dataclass(frozen=True)
class Key:
    """A key's type (or its allowed values), default and limits. A default of None also allows null."""

    kind: type | tuple[str | bool, ...]
    default: object = None
    least: float | None = None
    most: float | None = None


def _arguments(function: Callable, **keys: Key) -> dict[str, Key]:
    """Keys that are arguments of a function, whose defaults they take."""
    parameters = inspect.signature(function).parameters
    defaults = {name: parameters[name].default for name in keys}
    return {
        name: replace(key, default=list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name])
        for name, key in keys.items()
    }


MODEL_KEYS = _arguments(
    UNet,
    image_size=Key(int, least=1, most=8192),
    image_channel=Key(int, least=1, most=3),
    model_channels=Key(int, least=2, most=8192),
    channel_mult=Key(list, least=1, most=64),
    num_res_blocks=Key(int, least=1, most=64),
    attention_resolutions=Key(list, least=1, most=8192),
    num_heads=Key(int, least=1, most=1024),
    dropout=Key(float, least=0, most=0.999),
    norm_groups=Key(int, least=1, most=8192),
    patch_size=Key(int, least=1, most=16),
) | {"diffusers_unet": Key(dict)}
DIFFUSION_KEYS = _arguments(
    GaussianDiffusion,
    timestep_num=Key(int, least=1, most=100_000),
    beta_schedule=Key(tuple(BETA_SCHEDULES)),
    loss_type=Key(tuple(LOSSES)),
    objective=Key(OBJECTIVES),
    loss_weight=Key(LOSS_WEIGHTS),
    clip_denoised=Key(bool),
)
KEYS = {
    # data
    "data_path": Key(str),
    "split": Key(SPLITS, "train"),
    "horizontal_flip": Key(bool, False),
    "sample_num": Key(int, 100, 1, 10_000),
    "save_dir": Key(str, "train_results"),
    "pth_save_name": Key(str),
    **MODEL_KEYS,
    **DIFFUSION_KEYS,
    # loop
    "init_from": Key(str),
    "batch_size": Key(int, 64, 1, 1_000_000),
    "train_epoch": Key(int, 100, 1, MANY),
    "max_steps": Key(int, None, 1, MANY),
    "max_minutes": Key(float, None, 1e-6, MANY),
    "steps_per_minute": Key(float, None, 1e-6, MANY),
    "optimizer": Key(("adam", "muon"), "adam"),
    "learning_rate": Key(float, 1e-4, 0, 1000),
    "Adam_beta1": Key(float, 0.9, 0, 0.999999),
    "Adam_beta2": Key(float, 0.99, 0, 0.999999),
    "ema_decay": Key(float, 0.9999, 0, 1),
    "grad_clip": Key(float, None, 1e-9),
    "warmup_steps": Key(int, 0, 0, MANY),
    "lr_schedule": Key(("constant", "cosine"), "constant"),
    "gradient_accumulation": Key(int, 1, 1, 1_000_000),
    "seed": Key(int, 0, 0, 2**63 - 1),
    "precision": Key(PRECISIONS, "auto"),
    "compile": Key(("auto", True, False, "graphs"), "auto"),
    "deterministic": Key(bool, True),
    "num_workers": Key(int, None, 0, 64),
    "log_every": Key(int, 50, 1, MANY),
    "save_every": Key(int, 1000, 1, MANY),
    "keep_checkpoints": Key(int, 2, 1, 1000),
    "sample_every": Key(int, 5000, 1, MANY),
    "preview_info": Key(str, "DDIM_25_0p0"),
}
# What may change when a run is resumed: its length, its place, how it is computed, what it shows, and the settings
# that one changes after a failure.
RESUMABLE = {
    "data_path", "save_dir", "pth_save_name", "sample_num", "train_epoch", "max_steps",
    "max_minutes", "steps_per_minute", "learning_rate", "warmup_steps", "lr_schedule", "grad_clip",
    "gradient_accumulation", "precision", "compile", "deterministic", "num_workers", "log_every", "save_every",
    "keep_checkpoints", "sample_every", "preview_info",
}  # fmt: skip


def plain_recipe(name: str, **keys) -> dict:
    """A recipe for weights that came without one: a folder of pictures, and the default of every key but `keys`."""
    recipe = {"data_name": name, "dataset": "Folder"} | {key: KEYS[key].default for key in KEYS}
    recipe |= {"data_path": f"data/{name.lower()}", "pth_save_name": name.lower()} | keys
    recipe["preview_info"] = f"DDIM_{min(25, recipe['timestep_num'])}_0p0"
    return check_recipe(recipe, name)


def complete_recipe(recipe, where: str) -> dict:
    """Checks a recipe from a file and adds the defaults of keys that are newer than the file. Raises ConfigError."""
    needed = [key for key in (*MODEL_KEYS, *DIFFUSION_KEYS) if KEYS[key].default is not None]
    if not isinstance(recipe, dict):
        raise ConfigError(f"{where} lacks everything")
    if missing := [key for key in ("data_name", "dataset", *needed) if key not in recipe]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return check_recipe({key: KEYS[key].default for key in KEYS} | recipe, where)


def check_recipe(recipe: dict, where: str) -> dict:
    """The recipe with every value converted to its key's type. ConfigError says `where` which value is wrong."""
    names = {"data_name": Key(str, ""), "dataset": Key(str, "")}
    checked = {k: _coerced(where, k, v, names[k]) if k in names else coerce(where, k, v) for k, v in recipe.items()}
    if checked["dataset"] not in LOADERS:
        raise ConfigError(f"{where}: dataset: {unknown(checked['dataset'], LOADERS)}")
    for key in ("data_path", "pth_save_name"):
        if checked[key] is None:
            raise ConfigError(f"{where}: {key} must be a text, not null")
    if checked["image_channel"] not in (1, 3):
        raise ConfigError(f"{where}: image_channel must be 1 (grey) or 3 (RGB), not {checked['image_channel']}")
    if checked["channel_mult"] == []:
        raise ConfigError(f"{where}: channel_mult needs one number per level, such as [1, 2, 2, 2]")
    if checked["pth_save_name"] != Path(checked["pth_save_name"]).name or checked["pth_save_name"] == "..":
        raise ConfigError(f"{where}: pth_save_name must be a plain name, not {short(checked['pth_save_name'])}")
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
    """What differs between two recipes, as "key: was …, is …" for each key."""
    keys = [key for key in new if (key in among or key not in KEYS) and old.get(key) != new[key]]
    return [f"{key}: was {_text(old.get(key))}, is {_text(new[key])}" for key in keys]


def _text(value) -> str:
    return f"a block of {len(value)} lines" if isinstance(value, dict) else str(value)


def coerce(where: str, name: str, value):
    """The value converted to the key's type, or ConfigError. YAML reads 1e-4 as text, and 4 where [4] is meant."""
    if name not in KEYS:
        raise ConfigError(f"{where}: {unknown(name, KEYS)}")
    return _coerced(where, name, value, KEYS[name])


def _coerced(where: str, name: str, value, key: Key):
    if value is None and key.default is None:
        return None
    wrong = ConfigError(f"{where}: {name} must be {_describe(key)}, not {short(value)}")
    if isinstance(key.kind, tuple):
        if not any(value == allowed and type(value) is type(allowed) for allowed in key.kind):  # 1 == True
            raise wrong
        return value
    if key.kind in (bool, str, dict):
        if not isinstance(value, key.kind) or value in ("", {}) or not _fits(value):
            raise wrong
        return value
    if key.kind is list:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if len(items) > LONGEST:
            raise wrong
        return [_number(item, replace(key, kind=int), wrong) for item in items]
    return _number(value, key, wrong)


def _fits(value: bool | str | dict) -> bool:
    """Whether a text can be the name of a file, and a block holds plain values, not too many of them.

    They are counted as YAML would write them without anchors: a few lines with anchors can stand for billions.
    """
    left, room = [value], NODES
    while left and room:
        value, room = left.pop(), room - 1
        if isinstance(value, dict | list | tuple):
            left += [*value.keys(), *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str):
            try:
                if b"\0" in os.fsencode(value):
                    return False
            except UnicodeEncodeError:  # half a surrogate pair
                return False
        elif not isinstance(value, bool | int | float | None):
            return False
    return not left


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
    text = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    text |= {list: f"a list of up to {LONGEST} whole numbers", dict: "a block of KEY: VALUE lines"}
    kind = "," if key.kind in (int, list) else "g"
    limits = [f"at least {key.least:{kind}}"] if key.least is not None else []
    limits += [f"at most {key.most:{kind}}"] if key.most is not None else []
    return " ".join([text[key.kind], " and ".join(limits)]).strip() + (" or null" if key.default is None else "")


def unknown(name, known) -> str:
    """An error text for an unknown name, with the closest known one."""
    text = str(name)[:100] if isinstance(name, str) else short(name)
    near = difflib.get_close_matches(text, list(map(str, known)), 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(map(str, known))}"
    return f"{short(name)} is not known{hint}"
