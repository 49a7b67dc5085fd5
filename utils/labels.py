"""Class labels of a network. The diffusion does not know them: it gets a function of (x, t) that they are bound to."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.gaussian import Model


def with_labels(network: Model, labels: Tensor | None, guidance: float = 1.0, no_label: int = 0) -> Model:
    """network(x, t, labels) as a function of (x, t), with classifier-free guidance (Ho & Salimans 2022).

    labels: int64 (B,); None: the network has none. no_label: the number that stands for no label.
    guidance: 0: no label, 1: the label, above 1: more of it than in the data,

        x_start = x_start(no label) + guidance * (x_start(label) - x_start(no label)).

    At a given x_t, x_start is affine in the network's output for every objective, so the outputs are combined: that is
    the same, and also the same as guiding the noise or the score. The diffusion then clips x_start to [-1, 1] as usual,
    so that strong guidance does not leave the range of the pictures. 0 and 1 cost one call of the network, any other
    guidance one call of twice the batch.
    """
    if labels is None:
        return network
    if guidance == 1:
        return lambda x, t: network(x, t, labels)
    dropped = torch.full_like(labels, no_label)
    if guidance == 0:
        return lambda x, t: network(x, t, dropped)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, dropped]))
        labelled, unlabelled = both.chunk(2)
        return unlabelled + guidance * (labelled - unlabelled)

    return guided


def usual_guidance(recipe: dict) -> float:
    """The guidance of a network's samples where none is asked for."""
    return recipe.get("guidance", 1.0) if class_names(recipe) else 1.0


def class_names(recipe: dict) -> list[str]:
    """The names of a network's classes; [] if it has none."""
    return recipe.get("class_names") or [str(i) for i in range(recipe.get("num_classes") or 0)]


def class_numbers(recipe: dict, labels: Sequence[int | str] | None = None, guidance: float = 1.0) -> list[int] | None:
    """The classes that the samples of a network have in turn, by their numbers; None for a network without labels.

    labels: names, or numbers from 0; None: every class. A number in a text is a name first. Raises ValueError, with the
    classes that there are, for one that does not exist, and for labels or a guidance that the network cannot follow.
    """
    names = class_names(recipe)
    if not names and (labels is not None or guidance != 1):
        raise ValueError("the network was trained without labels")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be a number from 0, not {guidance}")
    if guidance != 1 and not recipe["label_dropout"]:
        raise ValueError(
            f"guidance {guidance:g}: the network was trained with label_dropout=0, and only knows guidance 1"
        )
    if not names:
        return None
    return list(range(len(names))) if labels is None else [_number(label, names) for label in labels]


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
