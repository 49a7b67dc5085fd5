"""Interpolation: its ends, its noise and its depth."""

import pytest
import torch
from helpers.samplers import METHODS, T, knows, network, randn

from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, edit, interpolate, invert, sample, sample_progressive
from diffusion.interpolation import slerp

FIRST, SECOND = (randn(2, 1, 4, 4, seed=s).clamp(-1, 1) for s in (8, 9))


def between(lambdas, method="DDIM_{}_1p0", steps=10, depth=500, first=FIRST, second=SECOND, model=network, mode="lerp"):
    d = GaussianDiffusion(T)
    spec = SampleSpec.parse(method.format(steps))
    return list(interpolate(d, model, first, second, spec, depth, lambdas, 10, mode))


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
@pytest.mark.parametrize("method", METHODS)
def test_the_ends_are_the_two_pictures_denoised(method, mode):
    """The stream of a pair gives the noise of the first picture, of the second, then of the reverse process."""
    d, t = GaussianDiffusion(T), torch.full((2,), 499)
    for lam, picture in ((0.0, FIRST), (1.0, SECOND)):
        noise = SampleNoise(10, range(2))
        draws = [noise.draw(picture.shape, picture.dtype, "cpu") for _ in range(2)]
        x_t = d.q_sample(picture, t, draws[int(lam)])
        # 10 steps of 1000 timesteps are 5 of these 500.
        spec = SampleSpec.parse(method.format(5))
        *_, frame = sample_progressive(d, network, x_t, spec, generator=noise, depth=500)
        # Slerp's sines at its ends: 1e-16, times a few steps of the network.
        torch.testing.assert_close(between([lam], method, mode=mode)[0], frame.sample, rtol=0, atol=1e-12)


def test_the_ends_do_not_depend_on_the_other_picture():
    assert torch.equal(between([0.0])[0], between([0.0], second=-SECOND)[0])
    assert torch.equal(between([1.0])[0], between([1.0], first=-FIRST)[0])
    assert not torch.equal(between([0.5])[0], between([0.5], second=-SECOND)[0])


def test_the_ends_are_pictures_that_the_network_knows():
    d = GaussianDiffusion(T)
    # 1e-16 over sqrt(ᾱ), 0.7 at this depth.
    torch.testing.assert_close(between([0.0], model=knows(FIRST, d))[0], FIRST, rtol=0, atol=1e-12)
    torch.testing.assert_close(between([1.0], model=knows(SECOND, d))[0], SECOND, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_only_lambda_changes_between_the_mixtures(method):
    results = between([i / 10 for i in range(11)] + [0.3, 0.0], method)
    assert len(results) == 13
    assert torch.equal(results[3], results[11]) and torch.equal(results[0], results[12])
    assert len({tuple(r.flatten().tolist()) for r in results}) == 11


def test_the_mixture_is_linear_in_x_t():
    seen = []

    def spy(x, t):
        seen.append(x)
        return network(x, t)

    between([0.0, 0.25, 1.0], steps=1, model=spy)
    # One float64 product and sum.
    torch.testing.assert_close(seen[1], 0.75 * seen[0] + 0.25 * seen[2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("depth", [1, 2, 3, 333, 500, 1000])
@pytest.mark.parametrize("steps", [1, 10, 50, 1000])
def test_depth_counts_training_timesteps(steps, depth):
    seen = []

    def spy(x, t):
        seen.append(t.tolist())
        return network(x, t)

    between([0.5], steps=steps, depth=depth, model=spy)
    assert seen[0] == [depth - 1, depth - 1]
    assert len(seen) == -(-steps * depth // T)  # this share of the sampler's steps, rounded up


def test_slerp_keeps_the_norm_that_lerp_loses():
    """Two independent noises: half-way, their lerp has 0.707 of the standard deviation of noise."""
    a, b = randn(50, 1, 32, 32, seed=1), randn(50, 1, 32, 32, seed=2)
    # 1,024 pixels each: the deviation has an error of 1 / sqrt(2 · 1024) per picture, 0.3 % over 50.
    assert torch.lerp(a, b, 0.5).std().item() == pytest.approx(0.5**0.5, rel=0.02)
    for lam in (0.0, 0.25, 0.5, 1.0):
        assert slerp(a, b, lam).std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 1.0])
def test_slerp_follows_the_arc_evenly(lam):
    a, b = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 2) for v in ([2.0, 0.0], [0.0, 2.0]))
    angle = torch.tensor(lam * torch.pi / 2, dtype=torch.float64)
    expected = 2 * torch.stack([angle.cos(), angle.sin()]).view(1, 1, 1, 2)
    # float64 in another order. Two equal pictures stay as they are.
    torch.testing.assert_close(slerp(a, b, lam), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(slerp(a, a, lam), a, rtol=0, atol=1e-9)


def test_redrawn_noise_changes_with_lambda_and_fixed_noise_does_not():
    fixed, redrawn = ([r[0] for r in between([0.0, 0.0, 0.0], mode=mode)] for mode in ("lerp", "redrawn"))
    assert torch.equal(fixed[0], fixed[1]) and torch.equal(fixed[1], fixed[2])
    assert torch.equal(redrawn[0], fixed[0])
    assert not torch.equal(redrawn[0], redrawn[1]) and not torch.equal(redrawn[1], redrawn[2])


def test_a_pair_does_not_depend_on_other_pairs():
    alone = between([0.3], first=FIRST[:1], second=SECOND[:1])[0]
    assert torch.equal(alone[0], between([0.3])[0][0])


def test_ddim_inversion_and_back_returns_the_pictures():
    """With a smooth network the ends are close to the pictures, and closer with more steps."""

    def smooth(x, t):
        return 0.5 * torch.tanh(x) + 0.1 * torch.cos(t / 300).view(-1, 1, 1, 1)

    errors = []
    for steps in (10, 100, 1000):
        # away from black and white: where x_start is clipped, the way up differs from the way down
        pictures = {"first": FIRST / 2, "second": SECOND / 2}
        ends = between([0.0, 1.0], "DDIM_{}_0p0", steps, model=smooth, mode="ddim", **pictures)
        errors.append(max((x - end).abs().max().item() for x, end in zip(pictures.values(), ends, strict=True)))
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.3 * errors[1] and errors[2] < 0.02, errors


@pytest.mark.parametrize("method", ["DDPM_{}_0p0", "DDIM_{}_0p5", "DPMpp_{}_0p0"])
def test_only_deterministic_ddim_can_be_inverted(method):
    with pytest.raises(ValueError, match="only DDIM with eta 0 can be inverted, such as DDIM_50_0p0"):
        between([0.5], method, mode="ddim")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="one of lerp, slerp, ddim, redrawn, not 'cubic'"):
        between([0.5], mode="cubic")


@pytest.mark.parametrize("depth", [0, -1, 1001])
def test_a_depth_outside_1_to_T_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth of {depth} .* 1 and 1000"):
        between([0.5], depth=depth)


# --- edits ------------------------------------------------------------------------------------------------------------


def edited(depth, mode="sdedit", steps=10, method="DDIM_{}_0p0", x_start=FIRST, model=network, **keywords):
    noise = SampleNoise(10, range(len(x_start)))
    x_T = noise.draw(x_start.shape, x_start.dtype, "cpu")
    spec = SampleSpec.parse(method.format(steps))
    return list(edit(GaussianDiffusion(T), model, x_T, x_start, spec, depth, noise, mode, **keywords))


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_is_the_picture_noised_and_denoised(method):
    d, noise = GaussianDiffusion(T), SampleNoise(10, range(2))
    x_t = d.q_sample(FIRST, torch.full((2,), 499), noise.draw(FIRST.shape, FIRST.dtype, "cpu"))
    *_, frame = sample_progressive(d, network, x_t, SampleSpec.parse(method.format(5)), noise, depth=500)
    assert torch.equal(edited(500, method=method)[-1].sample, frame.sample)


def test_an_edit_takes_its_share_of_the_steps():
    assert [len(edited(depth)) for depth in (1, 100, 101, 500, 1000)] == [1, 1, 2, 5, 10]
    assert [edited(depth)[0].t for depth in (1, 100, 500, 1000)] == [0, 99, 499, 999]


def test_inversion_and_back_returns_the_picture_or_that_of_another_network():
    """Two networks that each know one picture: the first finds the noise, which leads the second to its own picture."""
    d = GaussianDiffusion(T)
    first, second = knows(FIRST, d), knows(SECOND, d)
    assert edited(500, "ddim", model=first)[-1].sample.allclose(FIRST, atol=1e-9)
    x_t = invert(d, first, FIRST, SampleSpec.parse("DDIM_5_0p0"), 500)
    assert sample(d, second, x_t, SampleSpec.parse("DDIM_5_0p0"), depth=500).allclose(SECOND, atol=1e-9)


def test_what_cannot_be_edited_is_refused():
    with pytest.raises(ValueError, match="one of sdedit, ddim, not 'magic'"):
        edited(500, "magic")
    with pytest.raises(ValueError, match="only DDIM with eta 0 can be inverted"):
        edited(500, "ddim", method="DDPM_{}_0p0")
    with pytest.raises(ValueError, match="depth of 1001 .* 1 and 1000"):
        edited(1001)
