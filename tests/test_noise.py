"""Noise: where it comes from, and that a sample does not depend on the rest of its batch."""

import pytest
import torch
from helpers.samplers import METHODS, NAIVE, T, seeded

from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, sample
from diffusion.noise import randn_like
from models import UNet

COUNT = 12


def draw_in_batches(model, spec, size, dtype):
    """Samples 0 to COUNT - 1 in batches of this size."""
    diffusion, parts = GaussianDiffusion(T, objective="pred_v", clip_denoised=False), []
    for i in range(0, COUNT, size):
        indices = range(i, min(i + size, COUNT))
        noise = SampleNoise(7, indices)
        x_T = noise.draw((len(indices), 1, 8, 8), dtype, "cpu")
        parts.append(sample(diffusion, model, x_T, spec, noise))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "method, dtype, apart",
    [(method, torch.float64, 1e-9) for method in (*METHODS, NAIVE)]
    + [(method, torch.float32, 1e-5) for method in ("DDPM_{}_0p0", "DPMpp_{}_1p0")],
)
def test_a_sample_does_not_depend_on_its_batch(method, dtype, apart):
    """A UNet in batches of 12, of 7 (with a rest of 5) and of 1: only the order of its sums may differ."""
    torch.manual_seed(0)
    model = UNet(image_size=8, image_channel=1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=2)
    torch.nn.init.normal_(model.out[2].weight, std=0.1, generator=seeded())
    model, spec = model.eval().to(dtype), SampleSpec.parse(method.format(5))
    together = draw_in_batches(model, spec, COUNT, dtype)
    for size in (7, 1):
        torch.testing.assert_close(draw_in_batches(model, spec, size, dtype), together, rtol=0, atol=apart)
    assert len({tuple(x) for x in together.flatten(1).tolist()}) == COUNT


@pytest.mark.parametrize("seed, i", [(5 + 3 * 2**32, 0), (5, 3), (3, 5), (0, 7), (7, 0), (2**40, 1), (0, 0)])
def test_every_seed_and_index_has_its_own_noise(seed, i):
    others = [(s, j) for s in (0, 3, 5, 7, 2**40, 5 + 3 * 2**32) for j in range(8) if (s, j) != (seed, i)]
    mine, *rest = (SampleNoise(s, [j]).draw((1, 4), torch.float64, "cpu") for s, j in [(seed, i), *others])
    assert not any(torch.equal(mine, other) for other in rest)


def test_sample_noise_is_standard_normal_and_independent():
    noise = SampleNoise(0, range(300))
    first, second = (noise.draw((300, 1, 10, 10), torch.float32, "cpu") for _ in range(2))
    assert first.dtype == torch.float32
    for x in (first, second):
        # Five standard errors of 30,000 draws.
        assert abs(x.mean()) < 5 / 30_000**0.5 and abs(x.var() - 1) < 5 * (2 / 30_000) ** 0.5
    other = SampleNoise(1, range(300)).draw(first.shape, torch.float32, "cpu")
    for a, b in ((first, second), (first[1:], first[:-1]), (first, other)):
        assert abs((a * b).mean()) < 5 / 29_900**0.5
    assert torch.equal(SampleNoise(0, [7]).draw((1, 1, 10, 10), torch.float32, "cpu")[0], first[7])


def test_a_batch_of_another_size_than_the_noise_is_refused():
    with pytest.raises(ValueError, match="2 samples, .* batch of 3"):
        SampleNoise(0, [0, 1]).draw((3, 1), torch.float32, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_each_source_is_that_sources_own_draw(dtype):
    x = torch.zeros(2, 1, 3, 3, dtype=dtype)
    torch.manual_seed(5)
    expected = torch.randn(x.shape, dtype=dtype)
    torch.manual_seed(5)
    assert torch.equal(randn_like(x, None), expected)
    assert torch.equal(randn_like(x, seeded(5)), expected)
    ours = randn_like(x, SampleNoise(5, range(2)))
    assert ours.dtype == dtype and torch.equal(ours, SampleNoise(5, range(2)).draw(x.shape, dtype, "cpu"))
