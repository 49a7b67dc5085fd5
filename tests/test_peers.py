"""benchmarks/peers.py: that our samplers read the networks of other toolkits in the conventions these train them in."""

import importlib
from pathlib import Path

import pytest
import torch
from helpers.samplers import F64

from diffusion import SampleSpec, sample
from files.errors import ConfigError

MEAN, STD, T = 0.2, 0.3, 1000  # of Gaussian pictures, each pixel by itself
Z = torch.linspace(-2, 2, 9, **F64).view(1, 1, 3, 3)  # so far from the mean no prediction is clipped to [-1, 1]
SIGMAS = torch.logspace(-2.5, 2, T, **F64)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


def velocity(x, t):
    """E[picture - noise | x] of x = (1 - t) noise + t picture."""
    t = t.view(-1, 1, 1, 1)
    return MEAN + (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2) * (x - t * MEAN)


def noise(x, sigma):
    """E[noise | x] of x = picture + sigma noise."""
    return sigma * (x - MEAN) / (STD**2 + sigma**2)


@pytest.mark.parametrize("convention", ["flow", "exploding"])
def test_a_perfect_network_of_theirs_takes_noise_to_the_mean_and_the_standard_deviation(load, convention):
    parts = load("peer_parts")
    model, d = parts.from_flow(velocity) if convention == "flow" else parts.from_exploding(noise, SIGMAS)
    ac = d.alpha_bar(T - 1)
    x_T = ac**0.5 * MEAN + (ac * STD**2 + 1 - ac) ** 0.5 * Z  # Z standard deviations from the mean, as at the end

    def error(method):
        x = sample(d, model, x_T, SampleSpec.parse(method), torch.Generator())
        return (x - (MEAN + STD * Z)).abs().max().item()

    coarse, fine = error("DDIM_250_0p0"), error("DDIM_500_0p0")
    assert 0.45 < fine / coarse < 0.55  # falls like 1/steps, while a wrong sign, scale or time leaves an error
    assert fine < 0.01 and error("UniPC_50_0p0") < fine  # of a higher order; a wrong network is wrong by 0.1 to 1


@pytest.mark.parametrize("convention", ["flow", "exploding"])
def test_their_times_are_ours(load, convention):
    """At every timestep the network sees its own mixture of a picture and noise, also at the last, which is capped."""
    seen, parts = [], load("peer_parts")

    def network(x, t):
        seen.append((x, t.view(-1, 1, 1, 1)))
        return x

    model, d = parts.from_flow(network) if convention == "flow" else parts.from_exploding(network, SIGMAS)
    t, x_start, eps = torch.arange(T), torch.full((T, 1, 1, 1), 0.7, **F64), torch.full((T, 1, 1, 1), -1.3, **F64)
    model(d.q_sample(x_start, t, eps), t)
    ((x, time),) = seen
    mixture = (1 - time) * eps + time * x_start if convention == "flow" else x_start + time * eps
    torch.testing.assert_close(x, mixture, rtol=1e-6, atol=1e-6)  # 1 - ᾱ has lost 6 digits of float64 where ᾱ is near 1


def velocity_to(c, x, t):
    """picture - noise, where x = (1 - t) noise + t c."""
    return (c - x) / (1 - t)


def noise_from(c, x, sigma):
    """The noise, where x = c + sigma noise."""
    return (x - c) / sigma


PEERS = [  # the network's class, what its script asks of it where each picture is c, and its arguments as (x, t)
    ("smalldiffusion", "Unet", noise_from, lambda x, sigma, cond=None: (x * (1 + sigma**2).sqrt(), sigma)),  # Scaled
    ("torchcfm.models.unet.unet", "UNetModelWrapper", velocity_to, lambda t, x: (x, t.view(-1, 1, 1, 1))),
    ("rectified_flow_pytorch", "Unet", velocity_to, lambda x, times: (x, times.view(-1, 1, 1, 1))),
]


@pytest.mark.slow
@pytest.mark.parametrize("module, network, asked, arguments", PEERS, ids=[peer[0].split(".")[0] for peer in PEERS])
def test_a_peer_trains_its_network_for_what_the_mapping_reads(load, monkeypatch, module, network, asked, arguments):
    """The gradient of its loss at an output of 0 tells what its script asks for at (x, t); all pictures are 0.4."""
    name = module.split(".")[0]
    pytest.importorskip(name)
    make, settings = load("peers").PEERS[name]
    recipe = settings | {"image_channel": 3, "image_size": 16, "model_channels": 32, "precision": "fp32"}
    step, averaged, d = make(recipe, torch.contiguous_format, torch.device("cpu"))
    step(torch.rand(2, 3, 16, 16) * 2 - 1, 0.5)  # the network as it is
    with torch.no_grad():
        x = sample(d, averaged().eval(), torch.randn(1, 3, 16, 16), SampleSpec.parse("UniPC_2_0p0"), torch.Generator())
    assert x.shape == (1, 3, 16, 16) and x.isfinite().all()
    calls = []

    def forward(self, *args, **kwargs):
        x, t = arguments(*args, **kwargs)
        output = torch.zeros_like(x, requires_grad=True)  # where d/dy of mean((y - target)²) is -2 target / count
        output.register_hook(lambda grad: calls.append((x, t, -grad * grad.numel() / 2)))
        return output

    monkeypatch.setattr(getattr(importlib.import_module(module), network), "forward", forward)
    step(torch.full((64, 3, 16, 16), 0.4), 0.5)
    ((x, t, target),) = calls
    divisor = t if asked is noise_from else 1 - t
    kept = (divisor > 0.05).flatten()  # float32 rounds x by 1e-7 of it, which the divisor makes 2e-6
    assert kept.sum() > 40
    torch.testing.assert_close(target[kept], asked(0.4, x, t)[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arm, values",
    [
        ("diffusers", (16, 1e-4, 32)),  # as in its script, and the width of `small`
        ("diffusers learning_rate=1e-3 model_channels=128", (16, 1e-3, 128)),
        ("denoising_diffusion_pytorch", (64, 8e-5, 32)),
        ("torchcfm batch_size=32", (32, 2e-4, 32)),
    ],
)
def test_the_settings_of_a_peer_are_keys_of_its_recipe(load, arm, values):
    minutes = load("minutes")
    args = minutes.Namespace(minutes=1, data_name="Mnist_laptop", data_path=None, save_dir=None)
    recipe = minutes.recipe_of(arm, 0, args)
    assert tuple(recipe[key] for key in ("batch_size", "learning_rate", "model_channels")) == values
    assert recipe["num_classes"] is None  # whatever the block has: peers see no labels


def test_a_width_that_a_peer_cannot_have_is_one_line(load):
    pytest.importorskip("diffusers")
    peers = load("peers")
    recipe = peers.PEERS["diffusers"][1] | {"image_channel": 3, "image_size": 16, "seed": 0, "precision": "fp32"}
    with pytest.raises(ConfigError, match="diffusers with model_channels=30: .*divisible"):
        peers.fastest("diffusers", recipe | {"model_channels": 30}, lambda: iter(()), torch.device("cpu"))
