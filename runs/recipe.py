"""A recipe: one flat dict of plain values that describes a run completely. Its keys, and their allowed values."""

import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import ImageColor

from datasets import LOADERS, SPLITS, Reading
from diffusion import GaussianDiffusion, SampleSpec
from diffusion.gaussian import LOSS_WEIGHTS, LOSSES, OBJECTIVES
from diffusion.schedule import BETA_SCHEDULES, TIMESTEP_DENSITIES
from files.errors import ConfigError, short
from models import NETWORKS
from runs.values import Key, coerced, unknown
from utils.device import PRECISIONS

MANY, CLASSES = 10**12, 10_000  # steps or epochs, classes


def _arguments(function: Callable, **keys: Key) -> dict[str, Key]:
    """Keys that are arguments of a function, whose defaults they take."""
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return {name: replace(key, default=defaults[name]) for name, key in keys.items()}


LIMITS = {  # of the arguments of networks
    "image_size": Key(int | list, least=1, most=8192),
    "image_channel": Key((1, 3)),  # grey, RGB
    "model_channels": Key(int, least=2, most=8192),
    "channel_mult": Key(list, least=1, most=64),
    "num_res_blocks": Key(int, least=1, most=64),
    "attention_resolutions": Key(list, least=1, most=8192),
    "num_heads": Key(int, least=1, most=1024),
    "dropout": Key(float, least=0, most=0.999),
    "norm_groups": Key(int, least=1, most=8192),
    "patch_size": Key(int, least=1, most=16),
    "num_classes": Key(int, least=1, most=CLASSES, word="auto"),
    "depth": Key(int, least=1, most=256),
}
USUAL = {int: Key(int, least=0, most=8192), float: Key(float), bool: Key(bool), str: Key(str)}  # of other arguments
USUAL |= {kind | None: key for kind, key in USUAL.items()}


def network_keys() -> dict[str, Key]:
    """The keys of all networks: the arguments of their classes. TypeError for one that cannot be a key."""
    keys = {"network": Key(tuple(NETWORKS), "unet")}
    for network in NETWORKS.values():
        arguments = inspect.signature(network, eval_str=True).parameters.values()
        limits = {each.name: LIMITS.get(each.name) or USUAL.get(each.annotation) for each in arguments}
        if wrong := [each.name for each in arguments if not limits[each.name] or each.default is each.empty]:
            raise TypeError(f"{network.__name__}: {wrong[0]} needs a default, and a type of USUAL or limits in LIMITS")
        for name, key in _arguments(network, **limits).items():
            if keys.setdefault(name, key).default != key.default:
                raise TypeError(f"{network.__name__}: the default of {name} must be {keys[name].default}, as elsewhere")
    return keys | {"diffusers_unet": Key(dict)}


MODEL_KEYS = network_keys()
DIFFUSION_KEYS = _arguments(
    GaussianDiffusion,
    timestep_num=Key(int, least=1, most=100_000),
    beta_schedule=Key(tuple(BETA_SCHEDULES)),
    loss_type=Key(tuple(LOSSES)),
    objective=Key(tuple(OBJECTIVES)),
    loss_weight=Key(LOSS_WEIGHTS),
    clip_denoised=Key(bool),
    timestep_density=Key(tuple(TIMESTEP_DENSITIES)),
    betas=Key(list[float], least=0, most=1),
)
KEYS = {
    # data
    "data_path": Key(str),
    "split": Key(SPLITS, "train"),
    "horizontal_flip": Key(bool, False),
    **_arguments(Reading, background=Key(str), bits=Key(int, least=1, most=16), cache_dir=Key(str)),
    "class_names": Key(list[str], most=CLASSES),
    "label_dropout": Key(float, 0.1, 0, 0.999),
    "guidance": Key(float, 1.0, 0, 1000),
    "learned_guidance": Key(float, 1.0, 1, 1000),
    "sample_num": Key(int, 100, 1, 10_000),
    "save_dir": Key(str, "train_results"),
    "pth_save_name": Key(str),
    **MODEL_KEYS,
    **DIFFUSION_KEYS,
    # loop
    "init_from": Key(str),
    "trajectories": Key(int, None, 1, MANY),
    "teacher_info": Key(str, "UniPC_10_0p0"),
    "teacher_guidance": Key(float, None, 0, 1000),
    "teacher_sha256": Key(str),
    "feature_weight": Key(float, None, 0, 1000),
    "critic_weight": Key(float, 0.0, 0, 1000),
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
coerce = partial(coerced, KEYS)  # (where, name, value), see `coerced`
FORMAT_1 = (  # keys that every recipe in a file has; later ones have a default under which older runs go on exactly
    "data_name", "dataset", "image_size", "image_channel", "model_channels", "channel_mult", "num_res_blocks",
    "num_heads", "dropout", "timestep_num", "beta_schedule", "loss_type", "objective", "loss_weight", "clip_denoised",
)  # fmt: skip
# What may change when a run is resumed: its length, its place, how it is computed, what it shows, and the settings
# that one changes after a failure.
RESUMABLE = {
    "data_path", "cache_dir", "guidance", "save_dir", "pth_save_name", "sample_num", "train_epoch", "max_steps",
    "max_minutes", "steps_per_minute", "learning_rate", "warmup_steps", "lr_schedule", "grad_clip",
    "gradient_accumulation", "precision", "compile", "deterministic", "num_workers", "log_every", "save_every",
    "keep_checkpoints", "sample_every", "preview_info", "trajectories", "critic_weight",
}  # fmt: skip


def plain_recipe(name: str, **keys) -> dict:
    """A recipe for weights that came without one: a folder of pictures, and the default of every key but `keys`."""
    recipe = {"data_name": name, "dataset": "Folder"} | {key: KEYS[key].default for key in KEYS}
    return check_recipe(recipe | {"data_path": f"data/{name.lower()}", "pth_save_name": name.lower()} | keys, name)


def complete_recipe(recipe, where: str) -> dict:
    """Checks a recipe from a file and adds the defaults of keys that are newer than the file. Raises ConfigError."""
    if missing := [key for key in FORMAT_1 if not isinstance(recipe, dict) or key not in recipe]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return check_recipe({key: KEYS[key].default for key in KEYS} | recipe, where)


def check_recipe(recipe: dict, where: str) -> dict:
    """The recipe with every value converted to its key's type. ConfigError says `where` which value is wrong."""
    never_null = dict.fromkeys(("data_name", "dataset", "data_path", "pth_save_name"), Key(str, ""))
    checked = {name: coerced(KEYS | never_null, where, name, value) for name, value in recipe.items()}
    if checked["dataset"] not in LOADERS:
        raise ConfigError(f"{where}: dataset: {unknown(checked['dataset'], LOADERS)}")
    try:
        ImageColor.getrgb(checked["background"])
    except ValueError as error:
        raise ConfigError(f"{where}: background must be a colour, such as white or '#ff8800': {error}") from None
    if (names := checked["class_names"]) and checked["num_classes"] not in ("auto", len(names)):
        raise ConfigError(f"{where}: {len(names)} class_names do not fit num_classes={checked['num_classes']}")
    for key in ("guidance", "learned_guidance"):
        if checked["num_classes"] and checked[key] != 1 and not checked["label_dropout"]:
            raise ConfigError(f"{where}: label_dropout=0 allows no guidance: set {key}=1")
    if checked["learned_guidance"] != 1 and not checked["num_classes"]:
        raise ConfigError(f"{where}: learned_guidance needs labels: set num_classes=auto, or learned_guidance=1")
    if (betas := checked["betas"]) is not None and len(betas) != checked["timestep_num"]:
        raise ConfigError(f"{where}: its {len(betas):,} betas do not fit timestep_num={checked['timestep_num']}")
    if checked["channel_mult"] == []:
        raise ConfigError(f"{where}: channel_mult needs one number per level, such as [1, 2, 2, 2]")
    name = checked["pth_save_name"]
    if name != Path(name).name or name == ".." or len(os.fsencode(name)) > 229:  # .NAME.pt.<16 digits>.part has 255
        raise ConfigError(f"{where}: pth_save_name must be a plain name of at most 229 bytes, not {short(name)}")
    for key in ("preview_info", "teacher_info"):
        spec = parse_spec(checked[key], MANY, f"{where}: {key}")
        checked[key] = str(replace(spec, steps=min(spec.steps, checked["timestep_num"])))  # at most all of them
    return checked


def parse_spec(text: str, timestep_num: int, where: str) -> SampleSpec:
    """A sample_info text as a SampleSpec that fits timestep_num, or ConfigError."""
    try:
        spec = SampleSpec.parse(text)
        spec.timesteps(timestep_num)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return spec


def changed_keys(old: dict, new: dict, among: Collection[str]) -> list[str]:
    """What differs between two recipes in the keys that are in `among`, as "key: was …, is …"."""
    keys = [key for key in new if key in among and old.get(key) != new[key]]
    return [f"{key}: was {short(old.get(key))}, is {short(new[key])}" for key in keys]
