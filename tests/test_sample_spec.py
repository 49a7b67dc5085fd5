"""SampleSpec: the text of --sample_info, and the timesteps that a sampler visits."""

from fractions import Fraction

import numpy as np
import pytest
from helpers.samplers import T, walk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion import GaussianDiffusion, SampleSpec

no_deadline = settings(deadline=None)  # on a busy machine slow examples are not failures

# --- the text ---

DIGITS = st.text("0123456789", min_size=1, max_size=3)
SPEC_TEXTS = st.builds(
    "{}_{}_{}{}".format,
    st.sampled_from(["DDPM", "NaiveDDPM", "DDIM", "DPMpp", "UniPC"]),
    st.integers(1, 999_999),
    st.builds("0p{}".format, DIGITS) | st.sampled_from(["1p0", "1p00", "1p000"]),
    st.sampled_from(["", "_quad"]),
)


@given(text=SPEC_TEXTS)
@example(text="DDIM_50_0p001")
@no_deadline
def test_a_parsed_spec_is_the_text_and_parses_again(text):
    spec = SampleSpec.parse(text)
    method, steps, eta, *quad = text.split("_")
    assert (spec.method, spec.steps, spec.eta) == (method, int(steps), float(eta.replace("p", ".")))
    assert spec.quad == bool(quad)
    assert SampleSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["DDPM_1000_0p0", "DDIM_50_0p0", "DDIM_1_0p25", "DPMpp_7_1p0", "NaiveDDPM_50_0p0", "DDIM_9_0p0_quad"]
)
def test_a_spec_prints_as_the_text_it_was_parsed_from(text):
    assert str(SampleSpec.parse(text)) == text


SHORT = {"DDIM_50": "DDIM_50_0p0", "DDIM_50_0": "DDIM_50_0p0", "DDIM_50_0.0": "DDIM_50_0p0"}
SHORT |= {"ddim_50_0P0_QUAD": "DDIM_50_0p0_quad", "dpmPP_20_0.25": "DPMpp_20_0p25", "naiveddpm_9_1": "NaiveDDPM_9_1p0"}
SHORT |= {"unipc_10_quad": "UniPC_10_0p0_quad"}


@pytest.mark.parametrize("text", SHORT)
def test_shorter_texts_of_a_spec_mean_the_whole_one(text):
    assert SampleSpec.parse(text) == SampleSpec.parse(SHORT[text]) and str(SampleSpec.parse(text)) == SHORT[text]


BAD_METHOD = ["ddım_50_0p0", "PLMS_50_0p0", " DDIM_50_0p0", "_50_0p0", ""]
BAD_STEPS = ["DDIM_0_0p0", "DDIM_-5_0p0", "DDIM_050_0p0", "DDIM_1e3_0p0", "DDIM_5٠_0p0", "DDIM__0p0"]
BAD_ETA = ["DDIM_50_.5", "DDIM_50_1.001", "DDIM_50_1p5", "DDIM_50_2p0", "DDIM_50_-0p5", "DDIM_50_0p", "DDIM_50_0p٠"]
BAD_END = ["DDPM", "DDIM50", "DDIM_50_", "DDIM_50_0p0_x", "DDIM_50_0p0\n", "DDIM_50_0p0_", "DDIM_50_0p0_quad_quad"]


@pytest.mark.parametrize("text", BAD_METHOD + BAD_STEPS + BAD_ETA + BAD_END)
def test_a_bad_spec_is_refused_with_the_grammar(text):
    with pytest.raises(ValueError) as refusal:
        SampleSpec.parse(text)
    assert all(part in str(refusal.value) for part in [repr(text), "METHOD_STEPS_ETA", "DDIM_50_0p0"])
    assert "\n" not in str(refusal.value)


# --- the timesteps ---


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="DDIM_11_0p0 .* 10 timesteps"):
        SampleSpec.parse("DDIM_11_0p0").timesteps(10)
    with pytest.raises(ValueError, match="DDIM_11_0p0 .* 10 timesteps"):
        walk(GaussianDiffusion(10), "DDIM_{}_0p0", 11)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 40, 50, 100, 125, 200, 250, 500, 1000])
def test_timesteps_are_numpys_linspace_rounded_down(steps):
    # These divide T: every value is an integer, and numpy's floats are exact.
    expected = np.floor(np.linspace(-1, T - 1, steps + 1))[1:]
    assert SampleSpec("DDIM", steps, 0.0).timesteps(T) == expected.astype(int).tolist()


@given(pair=st.tuples(st.integers(1, 1200), st.integers(1, 1200)))
@no_deadline
def test_timesteps_of_any_number_of_steps(pair):
    steps, depth = sorted(pair)
    timesteps = SampleSpec("DDIM", steps, 0.0).timesteps(depth)
    assert timesteps == [Fraction(k * depth, steps).__floor__() - 1 for k in range(1, steps + 1)]
    assert timesteps == sorted(set(timesteps)) and timesteps[0] >= 0 and timesteps[-1] == depth - 1
    assert SampleSpec("DDIM", depth, 0.0).timesteps(depth) == list(range(depth))


@given(pair=st.tuples(st.integers(1, 1200), st.integers(1, 1200)))
@no_deadline
def test_quadratic_timesteps_of_any_number_of_steps(pair):
    steps, depth = sorted(pair)
    timesteps = SampleSpec("DDIM", steps, 0.0, quad=True).timesteps(depth)
    assert len(timesteps) == steps and timesteps == sorted(set(timesteps))
    assert timesteps[0] >= 0 and timesteps[-1] == depth - 1
    exact = [Fraction(k * k * depth, steps * steps) - 1 for k in range(1, steps + 1)]
    # rounded up, or moved up to the next free timestep: where two would be the same, all below are 0, 1, 2, …
    assert all(e <= t and (t < e + 1 or t == k) for k, (t, e) in enumerate(zip(timesteps, exact, strict=True)))
