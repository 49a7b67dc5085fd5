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
    least: float = -math.inf
    most: float = math.inf
    word: str | None = None


def coerced(keys: dict[str, Key], where: str, name: str, value):
    """The value converted to the type of this key: YAML reads 1e-4 as text. ConfigError if it does not fit."""
    if name not in keys:
        raise ConfigError(f"{where}: {unknown(name, keys)}")
    key = keys[name]
    if (value is None and key.default is None) or (isinstance(value, str) and value == key.word):
        return value
    try:
        return _converted(value, key)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {name} must be {_describe(key)}, not {short(value)}") from None


def _converted(value, key: Key):
    """TypeError, ValueError or OverflowError for a value of another type or beyond the limits."""
    if key.kind == list[float] and isinstance(value, list):
        return [_converted(item, replace(key, kind=float)) for item in value]
    if key.kind in (list, int | list):
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if len(items) not in (range(LONGEST + 1) if key.kind is list else (1, 2)):
            raise ValueError
        numbers = [_converted(item, replace(key, kind=int)) for item in items]
        return numbers if key.kind is list or len(set(numbers)) > 1 else numbers[0]
    if key.kind in (int, float):
        number = key.kind(value) if isinstance(value, int) else float(value)
        fits = not isinstance(value, bool) and math.isfinite(number) and key.least <= number <= key.most
        value = key.kind(number)
        fits = fits and value == number  # 1.5 is no whole number
    elif isinstance(key.kind, tuple):
        fits = any(value == allowed and type(value) is type(allowed) for allowed in key.kind)  # 1 == True
    elif key.kind == list[str]:
        fits = isinstance(value, list) and len(value) <= key.most and all(v and isinstance(v, str) for v in value)
    else:
        fits = isinstance(value, key.kind) and value not in ("", {})
    if not fits:
        raise ValueError
    return value


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
    limits = [f"at least {key.least:{kind}}"] if key.least > -math.inf else []
    limits += [f"at most {key.most:{kind}}"] if key.most < math.inf else []
    also = f" or {key.word}" * bool(key.word) + " or null" * (key.default is None)
    return " ".join([text[key.kind], " and ".join(limits)]).strip() + also


def unknown(name, known) -> str:
    """An error text for an unknown name, with the closest known one."""
    text = str(name)[:100] if isinstance(name, str) else short(name)
    near = [ELSEWHERE[text]] if ELSEWHERE.get(text) in known else []
    near = near or difflib.get_close_matches(text, list(map(str, known)), 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(map(str, known))}"
    return f"{short(name)} is not known{hint}"
