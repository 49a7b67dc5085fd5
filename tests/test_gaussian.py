"""Schedules, the forward process, its posterior and the losses, against diffusers and Bayes' rule."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.samplers import OBJECTIVES, SCHEDULES, T, target_of
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion import GaussianDiffusion


def pictures(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape or (6, 3, 4, 4), generator=generator, dtype=torch.float64)


X_START, NOISE = pictures(0).clamp(-1, 1), pictures(1)
TS = torch.tensor([0, 1, 10, 500, 998, 999])  # one timestep per picture, with both ends


def diffusers_scheduler(diffusion):
    """diffusers' forward process with our float64 table instead of its float32 one."""
    scheduler = DDPMScheduler(num_train_timesteps=diffusion.timestep_num)
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    return scheduler


def alpha_bar(diffusion, t):
    return diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)


def output_for(diffusion, x_start, x_t, t):
    """The output of a network at x_t whose predicted x_start is this one."""
    ac = alpha_bar(diffusion, t)
    return target_of(diffusion.objective, x_start, (x_t - ac.sqrt() * x_start) / (1 - ac).sqrt(), ac)


# --- schedules ---


@pytest.mark.parametrize("timesteps", [100, 250, 1000])
def test_betas_equal_diffusers(timesteps):
    linear = DDPMScheduler(timesteps, 0.1 / timesteps, 20 / timesteps, "linear").betas
    cosine = DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2").betas
    for ours, theirs in [("linear", linear), ("cosine", cosine)]:
        ours = GaussianDiffusion(timesteps, ours).betas
        # Their tables are float32: 6e-8 for its rounding, and a little more for its linspace.
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [1, 2, 10, 1000])
def test_tables_are_monotone_float64(timesteps, schedule):
    d = GaussianDiffusion(timesteps, schedule)
    for table in (d.betas, d.alphas_cumprod, d.loss_weights):
        assert table.dtype == torch.float64 and table.shape == (timesteps,)
    assert 0 < d.betas[0] and d.betas[-1] < 1 and (d.betas.diff() >= 0).all()
    assert 0 < d.alphas_cumprod[-1] and d.alphas_cumprod[0] < 1 and (d.alphas_cumprod.diff() < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 3, 10, 50, 100, 250, 1000, 4000])
def test_x_T_is_noise_for_every_T(timesteps, schedule):
    """The picture's share of x_T: 0.006 for the T = 1000 of Ho et al."""
    # The shortest ones end at the cap of beta, 0.999: at most sqrt(0.001) of the picture is left.
    # (A single linear step is not noise: its only beta is the first, 0.1.)
    assert GaussianDiffusion(timesteps, schedule).alphas_cumprod[-1].sqrt() < 0.032


def test_linear_betas_leave_the_same_signal_for_every_T():
    last = {n: GaussianDiffusion(n, "linear").alphas_cumprod[-1].log().item() for n in (100, 250, 1000)}
    # To first order log(ᾱ_T) is -sum(betas) = -10.05 for each; the second order adds 0.67 at T = 100.
    assert last == pytest.approx(dict.fromkeys(last, -10.05), abs=0.8)


def test_cosine_alphas_cumprod_follow_the_paper():
    """Nichol & Dhariwal 2021, eq. 17; only the last beta is capped."""
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T)]
    expected = torch.tensor(f[1:], dtype=torch.float64) / f[0]
    # A product of up to 999 float64 factors: 999 roundings of 1e-16.
    torch.testing.assert_close(GaussianDiffusion(T).alphas_cumprod[:-1], expected, rtol=1e-12, atol=0)


# --- the forward process and its posterior ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_equals_diffusers(schedule):
    d = GaussianDiffusion(T, schedule)
    theirs = diffusers_scheduler(d).add_noise(X_START, NOISE, TS)
    # The same float64 formula.
    torch.testing.assert_close(d.q_sample(X_START, TS, NOISE), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
@settings(deadline=None)  # on a busy machine slow examples are not failures
@given(pair=st.tuples(st.integers(0, T - 1), st.integers(0, T - 1)).filter(lambda p: p[0] != p[1]))
def test_q_posterior_follows_from_bayes_rule(schedule, pair):
    """q(x_prev | x_t, x_0) is the product of q(x_t | x_prev) and q(x_prev | x_0), two Gaussians in x_prev."""
    t, t_prev = max(pair), min(pair)
    d = GaussianDiffusion(T, schedule)
    ac, ac_prev = d.alphas_cumprod[t], d.alphas_cumprod[t_prev]
    alpha = ac / ac_prev  # x_t = sqrt(alpha) x_prev + sqrt(1 - alpha) noise
    variance = 1 / (alpha / (1 - alpha) + 1 / (1 - ac_prev))
    mean = variance * (alpha.sqrt() / (1 - alpha) * NOISE + ac_prev.sqrt() / (1 - ac_prev) * X_START)
    ours = d.q_posterior(X_START, NOISE, t, t_prev)
    # 1 - ᾱ and 1 - alpha, down to 4e-5, have errors of 1e-16: about 1e-11 relative.
    torch.testing.assert_close(ours, (mean, variance.item()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0, 19, 999])
def test_q_posterior_ends_at_x_start(schedule, t):
    mean, variance = GaussianDiffusion(T, schedule).q_posterior(X_START, NOISE, t, -1)
    assert torch.equal(mean, X_START) and variance == 0


# --- reading a network's output ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_exact_target_predicts_x_start_and_noise(objective, schedule):
    d = GaussianDiffusion(T, schedule, objective=objective, clip_denoised=False)
    target = target_of(objective, X_START, NOISE, alpha_bar(d, TS))
    x_t = d.q_sample(X_START, TS, NOISE)
    ours = d.predict_x_start(target, x_t, TS), d.predict_noise(X_START, x_t, TS)
    # Dividing by sqrt(ᾱ), 5e-5 at the last cosine timestep, turns float64's 1e-16 into 1e-11.
    torch.testing.assert_close(ours, (X_START, NOISE), rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_noise_follows_from_the_clipped_x_start(objective):
    d = GaussianDiffusion(T, objective=objective)
    x_t, wanted = pictures(2), pictures(3, scale=2)
    x_start = d.predict_x_start(output_for(d, wanted, x_t, TS), x_t, TS)
    noise = d.predict_noise(x_start, x_t, TS)
    # As above: 1e-11.
    torch.testing.assert_close(x_start, wanted.clamp(-1, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(d.q_sample(x_start, TS, noise), x_t, rtol=0, atol=1e-12)
    for i, t in enumerate(TS.tolist()):  # one int for all pictures gives the same as a tensor
        ours = d.predict_x_start(output_for(d, wanted, x_t, TS), x_t, t), d.predict_noise(x_start, x_t, t)
        torch.testing.assert_close((ours[0][i], ours[1][i]), (x_start[i], noise[i]), rtol=0, atol=1e-9)


# --- losses ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_perfect_network_has_no_loss(objective, schedule):
    d = GaussianDiffusion(T, schedule, objective=objective)
    losses = d.training_losses(lambda x, t: output_for(d, X_START, x, t), X_START, TS, NOISE)
    # The noise is computed from x_t: roundings of 1e-16 over sqrt(1 - ᾱ), which is at least 0.006.
    assert losses.shape == (6,) and (losses < 1e-12).all()


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_the_mean_error_of_the_target(objective, loss_type):
    d = GaussianDiffusion(T, objective=objective, loss_type=loss_type)
    target, output = target_of(objective, X_START, NOISE, alpha_bar(d, TS)), pictures(4)
    error = (output - target).abs() if loss_type == "l1" else (output - target) ** 2
    losses = d.training_losses(lambda x, t: output, X_START, TS, NOISE)
    # The same float64 formula.
    torch.testing.assert_close(losses, error.mean(dim=(1, 2, 3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss_weight", ["p2", "min_snr"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_weights_follow_the_papers(schedule, objective, loss_weight):
    """Choi et al. 2022 with k = γ = 1; Hang et al. 2023, section 3.4, with γ = 5."""
    d = GaussianDiffusion(T, schedule, objective=objective, loss_weight=loss_weight)
    ac = d.alphas_cumprod
    snr = ac / (1 - ac)
    capped = torch.where(snr < 5, snr, 5.0)
    expected = {
        ("p2", "pred_noise"): 1 - ac,
        ("p2", "pred_x0"): ac,
        ("p2", "pred_v"): ac * (1 - ac),
        ("p2", "pred_flow"): ac * (1 - ac) / (ac.sqrt() + (1 - ac).sqrt()) ** 2,
        ("min_snr", "pred_noise"): capped / snr,
        ("min_snr", "pred_x0"): capped,
        ("min_snr", "pred_v"): capped / (snr + 1),
        ("min_snr", "pred_flow"): capped / (snr.sqrt() + 1) ** 2,
    }[loss_weight, objective]
    # A few roundings, and division by 1 - ᾱ, down to 4e-5: 1e-11.
    torch.testing.assert_close(d.loss_weights, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss_weight", ["none", "p2", "min_snr"])
def test_the_weights_multiply_the_loss(loss_weight):
    plain, weighted = GaussianDiffusion(T), GaussianDiffusion(T, loss_weight=loss_weight)
    losses, expected = (
        d.training_losses(lambda x, t: x, X_START, TS, NOISE) * weight
        for d, weight in [(weighted, 1), (plain, weighted.loss_weights[TS])]
    )
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)  # one product
    assert loss_weight != "none" or (weighted.loss_weights == 1).all()


@pytest.mark.parametrize("loss_weight", ["p2", "min_snr"])
def test_weighted_l2_losses_are_the_same_for_every_objective(loss_weight):
    wrong = pictures(5)
    losses = []
    for objective in OBJECTIVES:
        d = GaussianDiffusion(T, loss_type="l2", objective=objective, loss_weight=loss_weight)
        losses.append(d.training_losses(lambda x, t, d=d: output_for(d, wrong, x, t), X_START, TS, NOISE))
    # At the last cosine timestep the error of the noise is 5e-5 times that of x_start: 1e-11 relative remains.
    for loss in losses:
        torch.testing.assert_close(loss, losses[1], rtol=1e-9, atol=0)


# --- refusals ---


@pytest.mark.parametrize(
    "keyword, allowed",
    [
        ("beta_schedule", ["linear", "cosine", "flow"]),
        ("loss_type", ["l1", "l2"]),
        ("objective", ["pred_noise", "pred_x0", "pred_v", "pred_flow"]),
        ("loss_weight", ["none", "p2", "min_snr"]),
        ("timestep_density", ["uniform", "logit_normal", "logit_normal_first"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_allowed_ones(keyword, allowed):
    for name in allowed:
        GaussianDiffusion(10, **{keyword: name})
    with pytest.raises(ValueError) as refusal:
        GaussianDiffusion(10, **{keyword: "nonsense"})
    assert all(word in str(refusal.value) for word in [keyword, "nonsense", *allowed])


@pytest.mark.parametrize("timesteps", [0, -5])
def test_fewer_than_one_timestep_are_refused(timesteps):
    with pytest.raises(ValueError, match=f"timestep_num .* {timesteps}"):
        GaussianDiffusion(timesteps)
