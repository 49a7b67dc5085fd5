"""The critic of trainings on trajectories: what it learns, and what the network learns from it."""

import pytest
import torch
from helpers.samplers import T, randn
from torch import nn

from diffusion import GaussianDiffusion
from diffusion.few_calls import critic_losses, trajectory_losses
from models.critic import Critic


def test_the_critic_and_the_network_learn_each_from_its_own_loss():
    """A critic D(x) = w x, and pictures of one pixel: softplus of the differences, and their derivatives."""
    critic, x, y = nn.Conv2d(1, 1, 1, bias=False), torch.tensor([0.5, 2.0]), torch.tensor([1.5, -1.0])
    nn.init.constant_(critic.weight, 2)
    x.requires_grad_()
    maps = [u.view(2, 1, 1, 1) for u in (x, y)]
    of_critic, of_model = critic_losses(of_one_map(critic), [maps[0]], [maps[1]])
    torch.testing.assert_close(of_critic, (1 + (2 * (x - y)).exp()).log())
    torch.testing.assert_close(of_model, (1 + (2 * (y - x)).exp()).log())
    of_critic.sum().backward(retain_graph=True)
    assert x.grad is None
    torch.testing.assert_close(critic.weight.grad.sum(), ((x - y) * (2 * (x - y)).sigmoid()).sum().detach())
    critic.weight.grad = None
    of_model.sum().backward()
    assert critic.weight.grad is None
    torch.testing.assert_close(x.grad, -2 * (2 * (y - x)).sigmoid().detach())


def of_one_map(network):
    """A critic of one map, in the form that a critic of several has."""

    class OfOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, maps, labels):
            return [self.network(maps[0]).flatten(1)]

    return OfOne()


def test_a_critic_brings_back_the_variety_that_a_mean_leaves_out():
    """The ends have a part that does not follow from the start. The best mean leaves it out: a spread of 0.5 instead of
    sqrt(0.5² + 0.5²). A network that can add it from elsewhere does so when a critic looks.
    """

    def spread(critic_weight):
        torch.manual_seed(0)
        d, parts = GaussianDiffusion(T, objective="pred_x0"), nn.Parameter(torch.tensor([0.4, 0.05]))
        critic = of_one_map(nn.Sequential(nn.Conv2d(1, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1)))
        fast, slow = torch.optim.Adam(critic.parameters(), 1e-2, (0.0, 0.99)), torch.optim.Adam([parts], 1e-2)
        for _ in range(300):
            noise, hidden = torch.randn(2, 64, 1, 4, 4)

            def model(x, t, noise=noise):
                return parts[0] * noise + parts[1] * noise.roll(1, 0)

            x_end, t = 0.5 * noise + 0.5 * hidden, torch.full((64,), T - 1)
            losses = trajectory_losses(d, model, x_end, t, noise, lambda x: [x], 0.0, critic, critic_weight)
            torch.testing.assert_close(losses, trajectory_losses(d, model, x_end, t, noise))  # the critic has no value
            fast.zero_grad()
            slow.zero_grad()
            losses.mean().backward()
            fast.step()
            slow.step()
        return parts.square().sum().sqrt().item()

    assert spread(0.0) == pytest.approx(0.5, abs=0.03)  # a standard error of Adam's last steps of 1e-2
    assert spread(2.0) == pytest.approx(0.5**0.5, rel=0.1)


def test_the_critic_judges_the_finer_maps_by_class():
    maps = [randn(2, width, side, side, seed=side).float() for width, side in ((8, 8), (16, 4), (16, 2), (16, 2))]
    critic, labels = Critic(maps, 3), torch.tensor([0, 2])
    judged = critic(maps, labels)
    assert [tuple(numbers.shape) for numbers in judged] == [(2, 64), (2, 16)]
    other = critic(maps, torch.tensor([1, 2]))
    assert not judged[1][0].isclose(other[1][0]).any() and judged[1][1].equal(other[1][1])
    assert Critic(maps[:1], 0)(maps, None)[0].shape == (2, 64)  # a network of one resolution, without labels
