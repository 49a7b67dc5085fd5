"""test_solver.py --test_mode random_gen, and Run.sample, which draws the same in Python."""

import gc

import numpy as np
import pytest
import torch
from helpers.pictures import numbered, pictures, pixels, sample
from PIL import Image

import test_solver
from datasets import to_uint8
from diffusion import GaussianDiffusion, SampleSpec
from diffusion.gaussian import OBJECTIVES
from runs.recipe import plain_recipe
from runs.run import Run, in_batches, load_run
from test_modes.progress import FILM_FRAMES, PROGRESS_ROWS, progress_frames
from utils.device import resolve_precision, sampling_precision
from utils.pictures import save_table

# --- the command ------------------------------------------------------------------------------------------------------


def test_random_gen_makes_final_and_progress_pictures(trained, tmp_path):
    sample(trained, tmp_path, "--sample_num", 9, "--sample_info", "DDIM_5_0p0", "DPMpp_7_1p0")
    made = pictures(tmp_path)
    assert sorted(made) == [
        f"digits_{spec}_{what}.png" for spec in ("DDIM_5_0p0", "DPMpp_7_1p0") for what in ("final", "progress")
    ]
    final, progress = (pixels(made[f"digits_DDIM_5_0p0_{what}.png"]) for what in ("final", "progress"))
    assert progress.ndim == 2  # a grey file, as all of its cells are grey
    assert final.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    # The last row of the progress, twice: as x_t and as the predicted x_start. It is the first row of the result.
    row = progress[-44:-8, :, None]
    places = [i for i in range(row.shape[1] - 103) if (row[:, i : i + 104] == final[:36]).all()]
    assert len(places) == 2 and places[1] - places[0] >= 104 + 8  # a gap between them
    sample(trained, tmp_path / "again", "--sample_num", 9, "--sample_info", "DDIM_5_0p0")
    assert (pixels(pictures(tmp_path / "again")["digits_DDIM_5_0p0_final.png"]) == final).all()


def test_a_seed_gives_the_same_samples_in_any_batch(trained, tmp_path):
    args = ["--sample_num", 16, "--sample_info", "DDIM_4_1p0", "--precision", "fp32"]
    for size in (16, 7, 1):
        sample(trained, tmp_path / "r", *args, "--batch_size", size, "--sample_dir", tmp_path / str(size))
    whole, *others = (numbered(tmp_path / str(size), 16) for size in (16, 7, 1))
    assert whole.shape == (16, 8, 8) and len({picture.tobytes() for picture in whole}) == 16
    for other in others:  # one level of 255 where float32's rounding tips a pixel over
        assert np.abs(whole - other).max() <= 1
    sample(trained, tmp_path / "r", *args, "--seed", 1, "--sample_dir", tmp_path / "other")
    assert all((a != b).any() for a, b in zip(numbered(tmp_path / "other", 16), whole, strict=True))


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_film_on_request(trained, tmp_path, kind):
    sample(trained, tmp_path, "--sample_num", 4, "--sample_info", "DDIM_10_0p0", "--animate", kind)
    made = pictures(tmp_path)
    film = Image.open(made[f"digits_DDIM_10_0p0_progress.{kind}"])
    assert film.format == kind.upper() and film.n_frames == len(progress_frames(10, FILM_FRAMES))
    assert film.info["loop"] == 0
    film.seek(film.n_frames - 1)
    last = np.asarray(film.convert("RGB")).astype(int)
    # WebP without loss; a GIF has 256 colours, and here only greys.
    assert np.abs(last - pixels(made["digits_DDIM_10_0p0_final.png"])).max() <= 1


@pytest.mark.slow
def test_sampling_keeps_only_the_frames_that_are_shown(tmp_path, monkeypatch):
    """random_gen itself, 20 pictures of 32x32 in 200 steps: big tensors are counted all along the way."""
    recipe = plain_recipe("x", image_size=32, image_channel=1, sample_num=20)
    recipe |= {"beta_schedule": "cosine", "objective": "pred_noise"}
    run = Run(torch.nn.Identity(), GaussianDiffusion(1000), recipe, 0, "raw")
    alive, shown = [], []

    def network(x, t):
        if t[0] % 200 == 99:
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            alive.append(sum(o.shape[1:] == (1, 32, 32) for o in tensors))  # batches, and rows of the picture
        return x * 0.5

    def save(cells, *rest):
        shown.extend(cells)
        return save_table(cells, *rest)

    monkeypatch.setattr(test_solver, "load_run", lambda *args, **given: run)
    monkeypatch.setattr("runs.run.ready_to_sample", lambda *args: network)
    monkeypatch.setattr("test_modes.progress.save_table", save)
    gc.collect()
    gc.freeze()  # what was there before is not looked through each time
    sample("x.pt", tmp_path, "--sample_info", "DDPM_200_0p0")
    assert len(alive) == 5 and max(alive) - min(alive) <= 1 and max(alive) <= 8, alive  # however far it has come
    assert len(shown) == len(progress_frames(200, PROGRESS_ROWS)) == 10
    assert {cell.size for row in shown for cell in row} == {(5 * 34 + 2, 36)}  # pictures of a row


def test_what_would_be_magnified_is_predicted_in_full_precision_by_default(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "pred_score", lambda a, sigma: (0, -1 / sigma))
    cpu = torch.device("cpu")
    assert sampling_precision("auto", cpu, "pred_noise") == sampling_precision("auto", cpu, "pred_score") == "fp32"
    assert sampling_precision("bf16", cpu, "pred_noise") == "bf16"
    for objective in ("pred_x0", "pred_v", "pred_flow"):
        assert sampling_precision("auto", cpu, objective) == resolve_precision("auto", cpu)


# --- Run.sample -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", ["DDPM_5_0p0", "DDIM_4_0p0", "DPMpp_4_1p0"])
def test_run_sample_draws_what_random_gen_draws(trained, tmp_path, info):
    args = ["--sample_num", 9, "--sample_info", info, "--seed", 4, "--precision", "fp32", "--batch_size", 4]
    sample(trained, tmp_path / "r", *args, "--sample_dir", tmp_path / "d", "--device", "cpu")
    run = load_run(trained).to(torch.device("cpu"))  # in channels last, too
    x = run.sample(9, info, seed=4, batch_size=4)
    assert (x.shape, x.dtype, x.device.type) == ((9, 1, 8, 8), torch.float32, "cpu") and x.abs().max() <= 1
    assert (to_uint8(x)[:, 0].numpy() == numbered(tmp_path / "d", 9)).all()
    assert torch.equal(run.sample(9, SampleSpec.parse(info), 4, 4), x)  # a text or a SampleSpec


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_run_sample_does_not_depend_on_the_batch_size(trained, batch_size):
    run = load_run(trained)
    whole = run.sample(7, "DPMpp_5_1p0", batch_size=7)
    # Convolutions of another batch sum in another order: 1e-6 a step in float32, a little more after five.
    torch.testing.assert_close(run.sample(7, "DPMpp_5_1p0", batch_size=batch_size), whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(run.sample(2, "DPMpp_5_1p0"), whole[:2], rtol=0, atol=2e-5)  # the first of more
    assert (run.sample(7, "DPMpp_5_1p0", seed=1) - whole).abs().amax((1, 2, 3)).min() > 0.1


def test_run_sample_refuses_what_it_cannot_draw(trained):
    run = load_run(trained)
    with pytest.raises(ValueError, match="METHOD_STEPS_ETA"):
        run.sample(1, "DDIM50")
    with pytest.raises(ValueError, match="1001 steps"):
        run.sample(1, "DDIM_1001_0p0")


def test_batches_cover_every_sample_once():
    assert list(in_batches(7, 3)) == [range(0, 3), range(3, 6), range(6, 7)]
    assert list(in_batches(7, 3, 1, 2)) == [range(3, 6)]  # the second of two processes
    assert next(in_batches(10**18, 3)) == range(0, 3)  # nothing is listed in advance
    assert list(in_batches(6, 3)) == [range(0, 3), range(3, 6)] and list(in_batches(2, 100)) == [range(0, 2)]
