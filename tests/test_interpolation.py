"""Interpolation: its ends, its noise and its depth."""

import pytest
import torch
from walks import METHODS, T, knows, network, randn, seeded

from diffusion import GaussianDiffusion, SampleSpec, interpolate

FIRST, SECOND = (randn(2, 1, 4, 4, seed=s).clamp(-1, 1) for s in (8, 9))


def between(lambdas, method="DDIM_{}_1p0", steps=10, depth=500, first=FIRST, second=SECOND, model=network):
    d = GaussianDiffusion(T)
    spec = SampleSpec.parse(method.format(steps))
    return list(interpolate(d, model, first, second, spec, depth, lambdas, seeded(10)))


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_are_the_two_pictures_denoised(method):
    """The generator draws the first picture's noise, the second's, then that of the reverse process."""
    d = GaussianDiffusion(T)
    pictures = [FIRST.float(), SECOND.float()]
    generator, t = seeded(10), torch.full((2,), 499)
    noises = [torch.randn(picture.shape, generator=generator) for picture in pictures]
    state = generator.get_state()
    for lam, picture, noise in zip((0.0, 1.0), pictures, noises, strict=True):
        generator.set_state(state)
        x_t = d.q_sample(picture, t, noise)
        # 10 steps of 1000 timesteps are 5 of these 500.
        spec = SampleSpec.parse(method.format(5))
        *_, frame = d.sample_progressive(network, x_t, spec, generator=generator, depth=500)
        assert torch.equal(between([lam], method, first=pictures[0], second=pictures[1])[0], frame.sample)


def test_the_ends_do_not_know_the_other_picture():
    assert torch.equal(between([0.0])[0], between([0.0], second=-SECOND)[0])
    assert torch.equal(between([1.0])[0], between([1.0], first=-FIRST)[0])
    assert not torch.equal(between([0.5])[0], between([0.5], second=-SECOND)[0])


def test_the_ends_return_a_picture_that_the_network_knows():
    d = GaussianDiffusion(T)
    # 1e-16 over sqrt(ᾱ), 0.7 at this depth.
    torch.testing.assert_close(between([0.0], model=knows(FIRST, d))[0], FIRST, rtol=0, atol=1e-12)
    torch.testing.assert_close(between([1.0], model=knows(SECOND, d))[0], SECOND, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_lambda_changes(method):
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


@pytest.mark.parametrize("depth", [0, -1, 1001])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth of {depth} .* 1 and 1000"):
        between([0.5], depth=depth)
