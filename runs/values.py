"""A key's type and limits, and values from YAML or from a file converted to it."""

import difflib
import math
from dataclasses import dataclass, replace
from types import UnionType

from files.errors import ConfigError, short

LONGEST = 32  # entries of a list of numbers
ELSEWHERE = {  # keys of other toolkits that do not look like ours
    "lr": "learning_rate", "bs": "batch_size", "resolution": "image_size", "size": "image_size",
    "dim": "model_channels", "dim_mults": "channel_mult", "T": "timestep_num", "diffusion_steps": "timestep_num",
    "iterations": "max_steps", "train_steps": "max_steps", "prediction_type": "objective", "fp16": "precision",
    "amp": "precision", "ema_rate": "ema_decay", "clip_grad": "grad_clip", "flip": "horizontal_flip",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key's type (or its allowed values), default and limits. A default of None also allows null.

    kind: int | list is one number, or two that differ; list is a list of whole numbers, list[float] of any.
    least, most: of a number, or of each of a list; of a list of names, how many. word: a text that is allowed, too.
    """

    kind: type | UnionType | tuple[str | bool | int, ...]
    default: object = None
    least: float | None = None
    most: float | None = None
    word: str | None = None


def coerced(where: str, name: str, value, key: Key):
    """The value converted to the key's type, or ConfigError. YAML reads 1e-4 as text, and 4 where [4] is meant."""
    if (value is None and key.default is None) or (isinstance(value, str) and value == key.word):
        return value
    wrong = ConfigError(f"{where}: {name} must be {_describe(key)}, not {short(value)}")
    if isinstance(key.kind, tuple):
        if not any(value == allowed and type(value) is type(allowed) for allowed in key.kind):  # 1 == True
            raise wrong
        return value
    if key.kind in (bool, str, dict):
        if not isinstance(value, key.kind) or value in ("", {}):
            raise wrong
        return value
    if key.kind == list[str]:
        if not isinstance(value, list) or len(value) > key.most or not all(v and isinstance(v, str) for v in value):
            raise wrong
        return value
    if key.kind == list[float] and isinstance(value, list):
        return [_number(item, replace(key, kind=float), wrong) for item in value]
    if key.kind in (list, int | list):
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if len(items) > LONGEST or (key.kind is not list and len(items) not in (1, 2)):
            raise wrong
        numbers = [_number(item, replace(key, kind=int), wrong) for item in items]
        return numbers if key.kind is list or len(set(numbers)) > 1 else numbers[0]
    return _number(value, key, wrong)


def _number(value, key: Key, wrong: ConfigError) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or key.kind == list[float]:
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
        int | list: "a whole number or two, [height, width],",
        float: "a number",
        bool: "true or false",
        str: "a text",
        list: f"a list of up to {LONGEST} whole numbers",
        list[str]: "a list of names",
        list[float]: "a list of numbers",
        dict: "a block of KEY: VALUE lines",
    }
    kind = "," if key.kind in (int, list, int | list) else "g"
    limits = [f"at least {key.least:{kind}}"] if key.least is not None else []
    limits += [f"at most {key.most:{kind}}"] if key.most is not None else []
    also = f" or {key.word}" * bool(key.word) + " or null" * (key.default is None)
    return " ".join([text[key.kind], " and ".join(limits)]).strip() + also


def unknown(name, known) -> str:
    """An error text for an unknown name, with the closest known one."""
    text = str(name)[:100] if isinstance(name, str) else short(name)
    near = [ELSEWHERE[text]] if ELSEWHERE.get(text) in known else []
    near = near or difflib.get_close_matches(text, list(map(str, known)), 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(map(str, known))}"
    return f"{short(name)} is not known{hint}"
