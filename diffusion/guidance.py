"""Networks with class labels: the diffusion gets a function of (x, t) that they are bound to."""

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


def learning_guidance(network: Model, labels: Tensor, guidance: float, no_label: int) -> Model:
    """network(x, t, labels) as a function of (x, t), whose training loss teaches the network to be guided (model
    guidance, Tang et al. 2025).

    The target of the loss is moved by (1 - 1 / guidance) times the network's own difference between label and no label,
    which has no gradient. With a squared error this comes to rest where

        output(label) = output(no label) + guidance * (mean of the targets with this label - output(no label)),

    which is what `with_labels` makes of a network that was trained without it, in one evaluation instead of two.
    labels: int64 (B,); pictures whose label was left out have no such difference. no_label: the number for that.
    """
    weight, dropped = (1 - 1 / guidance) * (labels != no_label)[:, None, None, None], torch.full_like(labels, no_label)

    def output(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            unlabelled = network(x, t, dropped).clone()  # CUDA graphs write their next output to the same place
        torch.clear_autocast_cache()  # before 2.11 it keeps weights that were converted without a gradient
        labelled = network(x, t, labels)
        return labelled - weight * (labelled.detach() - unlabelled)

    return output
