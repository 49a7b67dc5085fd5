"""What the tests of the samplers share: small networks, noise, and a walk with them."""

import torch

from diffusion import SampleSpec, sample_progressive

T = 1000
METHODS = ("DDPM_{}_0p0", "DDIM_{}_0p0", "DDIM_{}_0p5", "DDIM_{}_1p0", "DPMpp_{}_0p0", "DPMpp_{}_1p0")
NAIVE = "NaiveDDPM_{}_0p0"
PREDICTION_TYPES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


X_T = randn(2, 1, 4, 4, seed=1)
WEIGHT = randn(16, 16, seed=2) / 4


def network(x, t):
    """Stands for a trained network: any fixed function of x and t, some of whose outputs must be clipped."""
    hidden = x.flatten(1) @ WEIGHT.to(x.dtype) + torch.cos(t / 100)[:, None]
    return 1.5 * torch.tanh(hidden).to(x.dtype).view_as(x)


def knows(x_start, diffusion):
    """The network of a data set of one picture: the noise that led from it to x."""

    def model(x, t):
        ac = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x - ac.sqrt() * x_start) / (1 - ac).sqrt()

    return model


def walk(diffusion, method, steps, model=network, noise=X_T, seed=3, **keywords):
    spec = SampleSpec.parse(method.format(steps))
    return list(sample_progressive(diffusion, model, noise, spec, generator=seeded(seed), **keywords))
