"""Classifier-free guidance: the laws that it samples from, and its formula."""

import numpy as np
import pytest
import torch
from helpers.samplers import CENTRES, OBJECTIVES, SCHEDULES, SHARES, SPREAD, T, randn, rms_error, seeded, target_of
from scipy.integrate import solve_ivp

from diffusion import GaussianDiffusion, SampleSpec
from diffusion import sample as diffuse
from diffusion.guidance import learning_guidance, with_labels

# --- a mixture of Gaussians in the plane whose components are the classes, with the exact network --------------------


def perfect(diffusion):
    """The network that predicts E[target | x_t, class] of this data; the label 3 means no class."""

    def model(x, t, labels):
        ac, x = diffusion.alphas_cumprod[t[0]].item(), x.flatten(1)
        variance, centres = ac * SPREAD**2 + 1 - ac, ac**0.5 * CENTRES
        share = torch.softmax(SHARES.log() + (x @ centres.T - centres.square().sum(1) / 2) / variance, dim=1)
        share = torch.where(labels[:, None] == 3, share, torch.eye(4, 3, dtype=x.dtype)[labels])
        noise = (1 - ac) ** 0.5 * (x - share @ centres) / variance
        x_start = (x - (1 - ac) ** 0.5 * noise) / ac**0.5
        return target_of(diffusion.objective, x_start, noise, ac).view(-1, 2, 1, 1)

    return model


def sampled(x_T, labels, guidance, schedule="linear", objective="pred_noise", info="DDIM_1000_0p0"):
    d = GaussianDiffusion(T, schedule, objective=objective, clip_denoised=False)
    model = with_labels(perfect(d), labels, guidance, no_label=3)
    return diffuse(d, model, x_T.view(-1, 2, 1, 1), SampleSpec.parse(info), seeded(3)).view(-1, 2)


def guided_flow(x_T, label, guidance, ac):
    """Where the probability flow of the guided score takes x_T: s(x) = s_all(x) + guidance (s_class(x) - s_all(x)).

    In y = x / sqrt(ᾱ) and σ = sqrt(1 - ᾱ) / sqrt(ᾱ), where the data have a variance of SPREAD² + σ², the flow is
    dy/dσ = -σ s(y) (Karras et al. 2022, eq. 1). The scores are gradients of log densities, by central differences.
    """
    centres, shares = CENTRES.numpy(), SHARES.numpy()

    def log_densities(y, sigma):
        squares = ((y[:, None] - centres) ** 2).sum(2) / (2 * (SPREAD**2 + sigma**2))
        return np.logaddexp.reduce(np.log(shares) - squares, axis=1), -squares[:, label]

    def slope(sigma, y):
        y, score, h = y.reshape(-1, 2), np.zeros((2, len(y) // 2, 2)), 1e-4
        for axis in range(2):
            step = h * np.eye(2)[axis] * max(sigma, 1)
            ahead, behind = log_densities(y + step, sigma), log_densities(y - step, sigma)
            for i in range(2):
                score[i, :, axis] = (ahead[i] - behind[i]) / (2 * step[axis])
        return (-sigma * (score[0] + guidance * (score[1] - score[0]))).ravel()

    start = (x_T / ac**0.5).numpy().ravel()
    end = solve_ivp(slope, (((1 - ac) / ac) ** 0.5, 0), start, method="DOP853", rtol=1e-8, atol=1e-8).y[:, -1]
    return torch.from_numpy(end).view(-1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("info", ["DDPM_1000_0p0", "DDIM_1000_0p0"])
def test_guidance_1_gives_the_law_of_the_class_and_0_that_of_all(info):
    n = 1000  # of each class
    x_T, labels = randn(3 * n, 2, seed=5), torch.arange(3 * n) % 3
    x = sampled(x_T, labels, 1.0, info=info)
    # five standard errors of a mean, and of a covariance, of 1,000 draws; and 1 % of the spread for 1,000 steps
    for label in range(3):
        of_class = x[labels == label]
        assert (of_class.mean(0) - CENTRES[label]).abs().max() < 5 * SPREAD / n**0.5 + 0.01 * SPREAD
        assert (of_class.T.cov() - SPREAD**2 * torch.eye(2)).abs().max() < (5 * (2 / n) ** 0.5 + 0.02) * SPREAD**2
    every = sampled(x_T[:n], labels[:n], 0.0, info=info)
    shares = torch.bincount(torch.cdist(every, CENTRES).argmin(1), minlength=3) / n
    mixed = (torch.cdist(CENTRES, CENTRES) + 10 * torch.eye(3)).min() / 2 / SPREAD  # how far the centres are apart
    assert mixed > 1.5  # so that up to 7 % are nearer to another centre
    assert (shares - SHARES).abs().max() < 5 * 0.5 / n**0.5 + 0.07


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_guidance_gives_the_law_of_the_flow_of_the_guided_score(guidance):
    x_T, label = randn(60, 2, seed=6), 1
    exact = guided_flow(x_T, label, guidance, GaussianDiffusion(T, "linear").alpha_bar(T - 1))
    errors = [
        rms_error(sampled(x_T, torch.full((60,), label), guidance, info=info), exact)
        for info in ("DDIM_100_0p0", "DDIM_1000_0p0")
    ]
    assert errors[1] < 0.02 and errors[1] < errors[0] / 5, errors  # of data 0.7 wide; first order gives a tenth
    if guidance == 4:  # and it differs from the law of the class: it is pushed away from the other centres
        away = (CENTRES[label] - CENTRES[0]) / (CENTRES[label] - CENTRES[0]).norm()
        assert ((exact - CENTRES[label]) @ away).mean() > 0.3 * SPREAD


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_guidance_is_the_same_for_every_objective(schedule):
    x_T, labels = randn(20, 2, seed=7), torch.arange(20) % 3
    first, *others = (sampled(x_T, labels, 3.0, schedule, objective, "DPMpp_20_0p0") for objective in OBJECTIVES)
    for other in others:  # float64, and 1 / sqrt(ᾱ) of 2e4 at the noisy end of cosine betas
        torch.testing.assert_close(other, first, rtol=0, atol=1e-7)


def test_guidance_changes_x_start_before_it_is_clipped():
    d = GaussianDiffusion(T, objective="pred_x0")
    values = torch.tensor([0.5, -0.75, 0.25, 0.0])  # x_start by label
    x = torch.zeros(2, 1, 2, 2)

    def model(x, t, labels):
        return values[labels].view(-1, 1, 1, 1).expand_as(x)

    guided = d.predict(with_labels(model, torch.tensor([0, 1]), 1.6, no_label=2), x, 500)
    for row, label in enumerate((0, 1)):
        expected = (values[2] + 1.6 * (values[label] - values[2])).clamp(-1, 1)
        torch.testing.assert_close(guided[row], expected.expand(1, 2, 2), rtol=0, atol=1e-6)
    assert guided.min() == -1


@pytest.mark.parametrize("guidance, calls", [(0.0, [4]), (1.0, [4]), (2.0, [8])])
def test_guidance_costs_one_call_of_the_network(guidance, calls):
    seen = []

    def model(x, t, labels):
        seen.append((len(x), len(t), len(labels)))
        return x

    with_labels(model, torch.arange(4), guidance, 9)(torch.zeros(4, 1, 1, 1), torch.zeros(4))
    assert seen == [(n, n, n) for n in calls]


# --- learned guidance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_learned_guidance_comes_to_rest_where_guidance_leads(guidance):
    """A table of one output for each class learns from the centres, of which a half have no label."""
    d, centres = GaussianDiffusion(T, loss_type="l2", objective="pred_x0"), CENTRES.view(3, 2, 1, 1)
    table = torch.nn.Parameter(torch.zeros(4, 2, 1, 1, dtype=torch.float64))
    x_start, labels, t = torch.cat([centres, centres]), torch.tensor([0, 1, 2, 3, 3, 3]), torch.full((6,), 50)
    optimizer = torch.optim.SGD([table], 0.5)
    for _ in range(500):  # the difference from where it rests falls by 1 - 1 / 12 / guidance a step: to 4e-8
        optimizer.zero_grad()
        network = learning_guidance(lambda x, t, labels: table[labels], labels, guidance, no_label=3)
        d.training_losses(network, x_start, t, torch.zeros_like(x_start)).mean().backward()
        optimizer.step()
    mean = centres.mean(0)
    torch.testing.assert_close(table[3].detach(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(table[:3].detach(), mean + guidance * (centres - mean), rtol=0, atol=1e-6)


def test_learned_guidance_has_a_gradient_in_bfloat16():
    """Weights that autocast converts without a gradient must not be kept for the call that has one."""
    linear, x, labels = torch.nn.Linear(3, 3), torch.ones(2, 1, 3, 3), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        learning_guidance(lambda x, t, labels: linear(x), labels, 2.0, no_label=2)(x, labels).sum().backward()
    assert linear.weight.grad.abs().min() > 0
