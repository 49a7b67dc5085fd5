"""The losses of training on trajectories, and the map from noise to picture that they teach."""

import pytest
import torch
from helpers.samplers import T, flow, perfect, randn, rms_error, seeded, target_of
from torch import nn

from diffusion import GaussianDiffusion, SampleSpec, sample
from diffusion.few_calls import LINEAR_FROM, feature_distance, levels, trajectory_losses


@pytest.mark.parametrize("objective", ["pred_x0", "pred_v", "pred_flow"])
def test_the_loss_is_that_of_the_predicted_x_start(objective):
    """A network whose x_start is off by 0 in one picture, by ±0.3 in the other, whatever it predicts."""
    d, t = GaussianDiffusion(T, objective=objective), torch.tensor([999, 400])
    x_end, noise = randn(2, 1, 4, 4, seed=1).clamp(-1, 1), randn(2, 1, 4, 4, seed=2)
    off = 0.3 * randn(2, 1, 4, 4, seed=3).sign() * torch.tensor([0, 1]).view(2, 1, 1, 1)
    ac = d.alphas_cumprod[t].view(-1, 1, 1, 1)

    def model(x, t):
        x_start = x_end + off
        return target_of(objective, x_start, (x - ac.sqrt() * x_start) / (1 - ac).sqrt(), ac)

    losses = trajectory_losses(d, model, x_end, t, noise)
    expected = [0.0, (0.09 + LINEAR_FROM**2) ** 0.5 - LINEAR_FROM]
    # float64, 1e-16, over a divisor of at least 5e-5 at t = 999 and c = 5e-4
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_distance_in_features_is_that_of_directions():
    """Of two maps: one has vectors at angles of 0, 60, 90 and 180 degrees, 2 - 2 cos apart; the other is the same."""
    angles = torch.tensor([0, 60, 90, 180]).deg2rad().view(1, 1, 2, 2)
    x, y = torch.cat([angles.cos(), angles.sin()], 1), 7 * torch.tensor([1.0, 0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    x.requires_grad_()

    def features(pictures):
        return [pictures, pictures[:, :1].abs() + 1]

    (distance,) = feature_distance(features(x), features(y))
    torch.testing.assert_close(distance, torch.tensor((0 + 1 + 2 + 4) / 4 / 2))
    distance.backward()
    assert x.grad.abs().sum() > 0
    given = GaussianDiffusion(T, objective="pred_x0"), lambda x, t: y, x.detach(), torch.tensor([5]), y
    losses = trajectory_losses(*given), trajectory_losses(*given, features, 2.0)
    torch.testing.assert_close(losses[1] - losses[0], 2 * distance.detach()[None])


def test_the_levels_are_where_two_and_four_calls_are_made():
    for text, found in (("DDPM_2", levels(T)[1:2]), ("DDPM_4", levels(T))):
        assert [*found, T - 1] == SampleSpec.parse(text).timesteps(T)
    assert levels(1) == [0, 0, 0]


class Small(nn.Module):
    """Predicts x_start of points in the plane."""

    def __init__(self):
        super().__init__()
        first, middle, last = nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        self.layers = nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last).double()

    def forward(self, x, t):
        angle = (t / T * torch.pi / 2)[:, None].double()
        return self.layers(torch.cat([x.flatten(1), angle.cos(), angle.sin()], 1)).view_as(x)


def test_a_network_learns_the_map_from_noise_to_data():
    """A mixture of Gaussians: its perfect network draws trajectories from noise and from the levels. What a small
    network learns from them is compared with the flow, which is integrated on its own, from states that were not in
    them: from noise, and from data with new noise.
    """
    torch.manual_seed(0)
    d, small = GaussianDiffusion(T, objective="pred_x0", clip_denoised=False), Small()
    exact, starts = GaussianDiffusion(T, clip_denoised=False), [T - 1, *levels(T)]
    teacher, spec = perfect(exact, "mixture"), SampleSpec.parse("UniPC_10")
    x_end = sample(exact, teacher, randn(4000, 2, 1, 1, seed=1), spec)
    data = sample(exact, teacher, randn(300, 2, 1, 1, seed=2), SampleSpec.parse("UniPC_50"))

    def states(x, t, seed):
        return exact.q_sample(x, torch.full((len(x),), t), randn(*x.shape, seed=seed))

    learned, unseen = ([states(x, t, seed + t) for t in starts] for x, seed in ((x_end, 3), (data, 4)))
    ends = [sample(exact, teacher, x_t, spec, depth=t + 1) for x_t, t in zip(learned, starts, strict=True)]
    truths = [flow("mixture", x.view(-1, 2), d.alpha_bar(t)) for x, t in zip(unseen, starts, strict=True)]

    def errors(diffusion, model):
        calls = [
            sample(diffusion, model, x, SampleSpec.parse("DDIM_1"), depth=t + 1)
            for x, t in zip(unseen, starts, strict=True)
        ]
        return [rms_error(x.view(-1, 2), truth) for x, truth in zip(calls, truths, strict=True)]

    optimizer, generator, found = torch.optim.Adam(small.parameters(), 5e-3), seeded(), [errors(d, small)]
    for step in range(1, 501):
        rows = torch.randint(len(x_end), (4, 64), generator=generator)
        x, x_t = (torch.cat([of[r] for of, r in zip(lists, rows, strict=True)]) for lists in (ends, learned))
        t = torch.tensor(starts).repeat_interleave(64)
        optimizer.zero_grad()
        trajectory_losses(d, small, x, t, d.predict_noise(x, x_t, t)).mean().backward()
        optimizer.step()
        if step in (50, 500):
            found.append(errors(d, small))
    for before, early, late, plain in zip(*found, errors(exact, teacher), strict=True):
        assert before > 2 * early > 4 * late  # measured: 0.57, 0.12 to 0.15 and 0.04 to 0.05
        assert late < 0.6 * plain  # in one call, too: 0.56 from noise, 0.11, 0.29 and 0.44 from the levels
