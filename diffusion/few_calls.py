"""Samples in one to four calls: a network learns where its own sampler ends (Liu et al. 2022, distillation).

A deterministic sampler is a map from noise x_T to a picture x_end. Its many small steps are needed because the network
predicts the mean of all pictures that x_t may have come from, which is far from any of them while there is much noise.
Regressed on x_end itself, the network learns the map: at x_T that is a picture in one call. What it learns from never
moves, because the sampler ran once, with the weights that the network started from.

For a second call, DDPM adds new noise to the picture of the first one, which hides what was wrong in it. So the network
also learns where the sampler ends from its own pictures with new noise, at the other timesteps that DDPM_2 and DDPM_4
visit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize, softplus

from diffusion.gaussian import GaussianDiffusion, Model

Features = Callable[[Tensor], list[Tensor]]  # pictures (B, C, H, W) -> maps (B, channels, h, w) of a frozen network
LINEAR_FROM = 0.00054  # c of Song & Dhariwal 2023, section 3.3, for the root of the mean of the squared errors


def levels(timestep_num: int) -> list[int]:
    """The timesteps at which samplers of two and of four calls make the later ones: T/4 - 1, T/2 - 1 and 3T/4 - 1."""
    return [max(0, k * timestep_num // 4 - 1) for k in (1, 2, 3)]


def trajectory_losses(
    diffusion: GaussianDiffusion, model: Model, x_end: Tensor, t: Tensor, noise: Tensor,
    features: Features | None = None, feature_weight: float = 0.0,
    critic: nn.Module | None = None, critic_weight: float = 0.0, labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The pseudo-Huber loss of each predicted x_start, sqrt(mean (x_start - x_end)² + c²) - c, and feature_weight times
    its `feature_distance`: (B,).

    x_end: where the trajectories end, (B, C, H, W) in [-1, 1]; t: the timesteps that they start at, int64 (B,); noise:
    what leads from x_end to x_t there, like x_end.
    The gradient of the root has nearly the same norm for every picture, however far off: none of them dominates.

    critic: from the maps of features and labels, int64 (B,), to (B, positions) each. Where gradients are asked for,
    its own loss and critic_weight times that of the model (`critic_losses`) have theirs here. The value leaves both
    out: they only say how the two stand against each other.
    """
    x_t = diffusion.q_sample(x_end, t, noise)
    x_start = diffusion.x_start_of(model(x_t, t).to(x_t.dtype), x_t, t)  # a clipped one would have no gradient
    losses = ((x_start - x_end).square().flatten(1).mean(1) + LINEAR_FROM**2).sqrt() - LINEAR_FROM
    if features is None:
        return losses
    with torch.no_grad():
        of_end = features(x_end)
    of_start = features(x_start)
    losses = losses + feature_weight * feature_distance(of_start, of_end)
    if critic is not None and torch.is_grad_enabled():
        of_critic, of_model = critic_losses(critic, of_start, of_end, labels)
        opposed = of_critic + critic_weight * of_model
        losses = losses + opposed - opposed.detach()
    return losses


def feature_distance(of_x: list[Tensor], of_y: list[Tensor]) -> Tensor:
    """How different each of two pictures looks to a network: (B,), from 0 to 4 (Zhang et al. 2018, eq. 1, unweighted).

    of_x, of_y: its maps of the pictures, (B, channels, h, w) each. Each position of a map is scaled to the length 1.
    The squared distances of these vectors are averaged over the positions, and then over the maps. A mean of several
    sharp pictures is near to them in pixels, but not here.
    """
    maps = [(normalize(u.float(), dim=1), normalize(v.float(), dim=1)) for u, v in zip(of_x, of_y, strict=True)]
    return torch.stack([(u - v).square().sum(1).flatten(1).mean(1) for u, v in maps]).mean(0)


def critic_losses(
    critic: nn.Module, of_x: list[Tensor], of_y: list[Tensor], labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of a critic that is to give y, from the teacher, larger numbers than x, and that of the model which
    draws x: (B,) each. The first has gradients of the critic's weights only, the second of x only.

    softplus(C(x) - C(y)) and softplus(C(y) - C(x)), averaged over the positions, then over the maps (the relativistic
    GAN, Jolicoeur-Martineau 2019). Here x and y come from the same noise: what they have in common cancels, and what
    is left is what the model does differently, such as fine detail that it leaves out.
    """
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    real, drawn = critic(of_y, labels), critic([u.detach() for u in of_x], labels)
    judged = functional_call(critic, fixed, (of_x, labels))
    of_critic = [softplus((x - y).float()).mean(1) for x, y in zip(drawn, real, strict=True)]
    of_model = [softplus((y.detach() - x).float()).mean(1) for x, y in zip(judged, real, strict=True)]
    return torch.stack(of_critic).mean(0), torch.stack(of_model).mean(0)
