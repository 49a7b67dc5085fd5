"""The class labels of a network, by its recipe."""

import math
from collections.abc import Sequence

import numpy as np


def usual_guidance(recipe: dict) -> float:
    """The guidance of a network's samples where none is asked for."""
    return recipe["guidance"] if recipe["num_classes"] else 1.0


def class_names(recipe: dict) -> list[str]:
    """The names of a network's classes; [] if it has none."""
    return recipe["class_names"] or [str(i) for i in range(recipe["num_classes"] or 0)]


def class_numbers(recipe: dict, labels: Sequence[int | str] | None = None, guidance: float = 1.0) -> list[int] | None:
    """The classes that the samples of a network have in turn, by their numbers; None for a network without labels.

    labels: names, or numbers from 0; None: every class; one text: this class. A number in a text is a name first.
    Raises ValueError, with the classes that there are, for one that does not exist and for no class at all, and for
    labels or a guidance that the network cannot follow.
    """
    names = class_names(recipe)
    if not names and (labels is not None or guidance != 1):
        raise ValueError("the network was trained without labels: leave them and the guidance out")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be a number from 0, not {guidance}")
    if guidance != 1 and not recipe["label_dropout"]:
        raise ValueError(f"guidance {guidance:g}: a network trained with label_dropout=0 only knows guidance 1")
    if not names:
        return None
    if labels is None:
        return list(range(len(names)))
    labels = [labels] if isinstance(labels, str) else labels
    if not len(labels):
        raise ValueError("labels must name at least one class")
    numbers = {label: _number(label, names) for label in dict.fromkeys(labels)}
    return [numbers[label] for label in labels]


def in_proportion(sizes: Sequence[int], count: int) -> list[int]:
    """The classes of `count` samples, in the proportions of classes with so many pictures each.

    Each sample is of the class that is furthest below its share, so that the first ones are nearly in proportion, too.
    """
    sizes, drawn, order = np.asarray(sizes), np.zeros(len(sizes), np.int64), []
    for i in range(1, count + 1):
        order.append(int((i * sizes - drawn * sizes.sum()).argmax()))
        drawn[order[-1]] += 1
    return order


def _number(label: int | str, names: list[str]) -> int:
    if label in names:
        return names.index(label)
    counts = not any(name.isdecimal() for name in names)  # a text such as 3 counts the classes if it cannot be a name
    counted = not isinstance(label, str) or (counts and label.isdecimal() and len(label) < 9)
    number = int(label) if counted else -1
    if not 0 <= number < len(names):
        known = ", ".join(f"{i} {name}" if counts else name for i, name in enumerate(names))
        what = repr(label) if isinstance(label, str) else f"number {label} (of 0 to {len(names) - 1}; names are texts)"
        raise ValueError(f"{what} is not one of the {len(names)} classes: {known}")
    return number
