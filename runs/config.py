"""From config.yaml and --set to a recipe.

Later layers override earlier ones: the defaults of the keys (which Train_Setting in config.yaml spells out),
Train_Setting, the chain of `base`, the block of the data set, the weights of init_from, --set.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from datasets import LOADERS
from files.errors import ConfigError
from runs.recipe import DIFFUSION_KEYS, KEYS, MODEL_KEYS, check_recipe, coerce
from runs.values import unknown

DEFAULT = Path("config.yaml")


def load_recipe(
    config: Path, data_name: str, overrides: Sequence[str] = (), flags: dict | None = None,
    pretrained: Callable[[dict], dict] | None = None,
) -> dict:  # fmt: skip
    """The resolved recipe of one Train_Data block.

    config: a YAML file; where there is no config.yaml, the one beside train_solver.py is meant.
    overrides: "KEY=VALUE" texts of --set. flags: keys that have a flag of their own.
    pretrained: returns the recipe of the weights that a recipe with init_from starts from. Its network and diffusion
        override those of the block, except num_classes: auto; --set overrides both.
    Raises ConfigError for an unknown block or key (with the closest known one), a wrong type or value, a duplicate, and
    a cycle of bases.
    """
    content = _read_yaml(config)
    blocks = {str(k): v for k, v in _mapping(content.get("Train_Data"), f"{config}: Train_Data").items()}
    layers, chain, name = [], [], data_name
    while name is not None:
        if name in chain:
            raise ConfigError(f"{config}: Train_Data: the bases form a cycle: {' -> '.join([*chain, name])}")
        if name not in blocks:
            where = f"Train_Data.{chain[-1]}: base" if chain else "data_name"
            raise ConfigError(f"{config}: {where}: {unknown(name, blocks)}")
        block = _mapping({} if blocks[name] is None else blocks[name], f"{config}: Train_Data.{name}")
        layers.append((f"{config}: Train_Data.{name}", {k: v for k, v in block.items() if k != "base"}))
        chain.append(name)
        name = str(block["base"]) if "base" in block else None
    setting = _mapping(content.get("Train_Setting") or {}, f"{config}: Train_Setting")
    layers.append((f"{config}: Train_Setting", setting))
    layers.insert(0, ("--set", _parse_overrides(overrides) | (flags or {})))

    layers = [{key: coerce(where, key, value) for key, value in layer.items()} for where, layer in layers]
    # train_epoch wins over max_steps of an earlier layer, such as that of a base
    layers = [{"max_steps": None} | layer if "train_epoch" in layer else layer for layer in layers]
    if "beta_schedule" in layers[0]:  # over betas of init_from, too
        layers[0] = {"betas": None} | layers[0]
    recipe = _resolved(config, chain, layers)
    if recipe["init_from"] and pretrained:
        theirs = pretrained(recipe)
        own = {"num_classes"} if recipe["num_classes"] == "auto" else set()  # the data's, whatever the file knows
        layers.insert(1, {key: theirs[key] for key in [*MODEL_KEYS, *DIFFUSION_KEYS] if key not in own})
        recipe = _resolved(config, chain, layers)
    return check_recipe(recipe, str(config))


def quicker(config: Path, data_name: str) -> str:
    """A line that names the blocks of the same data which are for a GPU-hour and a laptop, if there are any."""
    blocks = {f"{data_name}_hour": "on a GPU", f"{data_name}_laptop": "on CPU cores"}
    known = _read_yaml(config)["Train_Data"]
    there = " or ".join(f"--data_name {name} ({where})" for name, where in blocks.items() if name in known)
    return f"quicker     {there}: smaller networks, minutes to hours (docs/howto.md)\n" if there else ""


def _resolved(config: Path, chain: list[str], layers: list[dict]) -> dict:
    values, data_name = {key: value for layer in reversed(layers) for key, value in layer.items()}, chain[0]
    dataset = next((name for name in chain if name in LOADERS), "Folder")
    recipe = {"data_name": data_name, "dataset": dataset} | {k: values.get(k, KEYS[k].default) for k in KEYS}
    if recipe["pth_save_name"] is None:
        recipe["pth_save_name"] = data_name.lower()
    if recipe["data_path"] is None:
        if dataset == "Folder":
            raise ConfigError(f"{config}: Train_Data.{data_name} needs a data_path: the folder with its pictures")
        recipe["data_path"] = f"data/{dataset.lower()}"
    paths = ("data_path", "save_dir", "init_from", "cache_dir")
    return recipe | {key: os.path.expanduser(recipe[key]) for key in paths if recipe[key]}


def _read_yaml(config: Path) -> dict:
    if config == DEFAULT and not config.exists():
        config = Path(__file__).parent.parent / DEFAULT
    content = read_yaml_file(config)
    for key in _mapping(content, str(config)).keys() - {"Train_Setting", "Train_Data"}:
        raise ConfigError(f"{config}: {unknown(key, ('Train_Setting', 'Train_Data'))}")
    return content


def read_yaml_file(file: Path):
    """The content of a YAML file. ConfigError if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return yaml.load(stream, _Loader)
    except Exception as error:  # PyYAML raises many types for odd tags, dates and numbers
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # in C, where PyYAML has it: ten times as fast
    """A safe loader that refuses duplicate keys, of which YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = max(keys, key=keys.count)
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse_overrides(texts: Sequence[str]) -> dict:
    """KEY=VALUE texts as a dict. The value of a text key is taken literally, any other is read as YAML."""
    values = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(f"--set {text}: write it as KEY=VALUE")
        try:
            is_text = key in KEYS and KEYS[key].kind is str and value != "null"
            values[key] = value if is_text else yaml.load(value, _Loader)
        except Exception as error:  # as above
            raise ConfigError(f"--set {text}: {error}") from error
    return values


def _mapping(value, where: str) -> dict:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a block of KEY: VALUE lines, not {type(value).__name__}")
    return value
