"""Samples with labels: a row a class, sample_dir, tables over guidance, sharing, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers.networks import noisy, randomise, small_run
from helpers.pictures import numbered, pictures, pixels, sample
from helpers.scripts import LABELLED, in_process, refused, train
from sklearn.datasets import load_digits

from datasets import to_uint8
from diffusion import SampleSpec, sample_progressive
from files.errors import ConfigError
from runs.labels import class_numbers, in_proportion
from runs.network import build
from runs.recipe import plain_recipe
from runs.run import load_run
from sharing.diffusers_folder import export_folder, import_folder
from utils.pictures import save_by_class

# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_sample_depends_only_on_the_seed_its_number_and_its_label(labelled):
    run = load_run(labelled)
    randomise(run.model)
    args = {"count": 6, "spec": "DPMpp_4_1p0", "seed": 2}
    x = run.sample(**args, labels=["3", 7], guidance=2)
    other = run.sample(**args, batch_size=4, labels=[3, 8], guidance=2)
    # float32 sums of other batches in another order, magnified by guidance
    torch.testing.assert_close(other[::2], x[::2], rtol=0, atol=1e-4)
    assert (other[1::2] - x[1::2]).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(run.sample(**args), run.sample(**args, labels=range(10)))  # each class in turn
    torch.testing.assert_close(run.sample(**args, labels=[3], guidance=0), run.sample(**args, labels=[5], guidance=0))
    for labels, guidance, says in (([10], 1, "0, 1, 2"), (["x"], 1, "'x'"), ([-1], 1, "-1"), (None, -1, "guidance")):
        with pytest.raises(ValueError, match=says):
            run.sample(**args, labels=labels, guidance=guidance)


@pytest.mark.slow
def test_the_recipe_says_how_strongly_previews_and_samples_follow_their_labels(tmp_path):
    assert train(tmp_path, settings=LABELLED | {"guidance": 3}).returncode == 0
    file = tmp_path / "digits" / "digits.pt"
    run, generator = load_run(file), torch.Generator().manual_seed(0)
    names, noise = run.recipe["class_names"], torch.randn(9, 1, 8, 8, generator=generator)
    labels = in_proportion(np.bincount(load_digits().target[:1500]), 9)

    def guided(x, t):
        with_label, without = run.model(x, t, torch.tensor(labels)), run.model(x, t)
        return without + 3 * (with_label - without)

    for frame in sample_progressive(run.diffusion, guided, noise, SampleSpec.parse("DDIM_2_0p0"), generator):
        x = frame.sample
    save_by_class(x, names, tmp_path / "by_hand.png", labels)
    preview, by_hand = pixels(file.with_name("preview_00000006.png")), pixels(tmp_path / "by_hand.png")
    assert np.abs(preview.astype(int) - by_hand).max() <= 1  # sums in another order, next to a rounding boundary

    args = {"count": 10, "spec": "DDIM_2_0p0"}
    assert torch.equal(run.sample(**args), run.sample(**args, guidance=3))
    assert not torch.equal(run.sample(**args), run.sample(**args, guidance=1))
    sample(file, tmp_path / "r", "--sample_info", "DDIM_2_0p0", "--sample_num", 10)
    assert "digits_DDIM_2_0p0_guidance3_final.png" in pictures(tmp_path / "r")
    flags = ["--diffusion_step", 2, "--lambda_num", 2, "--sample_num", 1]
    sample(file, tmp_path / "r", "--sample_info", "DDIM_2_0p0", *flags, mode="interpolate")  # without labels, as ever


@pytest.mark.parametrize(
    "names, given, numbers",
    [
        (["T-shirt", "dress", "ankle boot"], ["dress", "0", "ankle boot", 1], [1, 0, 2, 1]),
        (["3", "1", "2"], ["3", "2", 0], [0, 2, 0]),  # a text is a name, and a number of Python's counts
    ],
)
def test_classes_have_names_and_numbers(names, given, numbers):
    recipe = {"num_classes": 3, "class_names": names, "label_dropout": 0.1}
    assert class_numbers(recipe, given) == numbers
    assert class_numbers(recipe) == [0, 1, 2]
    assert class_numbers(recipe, str(given[0])) == numbers[:1]  # one text is one class, not its letters
    with pytest.raises(ValueError, match="at least one class"):
        class_numbers(recipe, [])
    for wrong in ("0" if names[0] == "3" else "3", "shirt", 3, "-1", "9" * 5000):
        with pytest.raises(ValueError, match=f"not one of the 3 classes.*{names[2]}"):
            class_numbers(recipe, [wrong])


def test_a_class_number_is_not_taken_for_a_name():
    """The flowers are called "1" to "102"."""
    recipe = {"class_names": ["2", "3", "5"], "label_dropout": 0.1}
    assert class_numbers(recipe, ["5", 1]) == [2, 1]
    with pytest.raises(ValueError, match=r"number 5 \(of 0 to 2; names are texts\) is not one of .*: 2, 3, 5"):
        class_numbers(recipe, [5])


def test_random_gen_draws_a_row_a_class(labelled, tmp_path):
    sample(labelled, tmp_path, "--sample_info", "DDIM_2_0p0", "--sample_num", 20)
    final = pixels(pictures(tmp_path)["digits_DDIM_2_0p0_final.png"])
    x = to_uint8(load_run(labelled).sample(20, "DDIM_2_0p0"))
    for label in range(10):  # cells of 32 pixels, two pixels apart, and rows 8 apart; the names are on the left
        row = final[8 + 44 * label + 2 : 8 + 44 * label + 34, -8 - 70 :]
        for i in range(2):
            shown = row[::4, 2 + 34 * i : 34 + 34 * i : 4].astype(int)
            assert np.abs(shown - x[label + 10 * i, 0].numpy()).max() <= 1
    sample(labelled, tmp_path / "b", "--sample_info", "DDIM_2_0p0", "--labels", 3, 7, "--guidance", 1, 2.5)
    names = [f"digits_DDIM_2_0p0{w}_{what}.png" for w in ("", "_guidance2p5") for what in ("final", "progress")]
    assert sorted(pictures(tmp_path / "b")) == sorted(names)
    assert pixels(pictures(tmp_path / "b")[names[0]]).shape[0] == 8 + 2 * 44


def test_many_classes_are_drawn_as_a_square(tmp_path):
    x, names = torch.rand(30, 3, 16, 16) * 2 - 1, [f"a class of the number {i}" for i in range(30)]
    image = pixels(save_by_class(x, names, tmp_path / "a.png", range(30)))
    assert image.shape[1] > image.shape[0] * 0.5 and image.shape[0] < 500


def test_a_sample_dir_holds_the_samples_of_one_choice_of_labels(labelled, trained, tmp_path):
    base = ["--sample_info", "DDIM_2_0p0", "--precision", "fp32", "--sample_dir", tmp_path / "d"]
    sample(labelled, tmp_path / "r", *base, "--labels", 3, 7, "--guidance", 2, "--sample_num", 3)
    sample(labelled, tmp_path / "r", *base, "--labels", 3, 7, "--guidance", 2, "--sample_num", 6, "--batch_size", 2)
    x = to_uint8(load_run(labelled).sample(6, "DDIM_2_0p0", labels=[3, 7], guidance=2))
    assert np.abs(numbered(tmp_path / "d", 6) - x[:, 0].numpy()).max() <= 1
    content = json.loads((tmp_path / "d" / "samples.json").read_text())
    assert content["labels"] == [3, 7] and content["guidance"] == 2
    args = ["--model_path", labelled, "--test_mode", "random_gen", "--save_dir", tmp_path / "r", *base]
    for other, says in ((["--labels", 3], "labels: was [3, 7], is [3]"), (["--labels", 3, 7], "guidance: was 2")):
        refused(in_process("test_solver.py", *args, *other, "--sample_num", 6), 2, says)
    sample(trained, tmp_path / "r", *base[:-1], tmp_path / "plain", "--sample_num", 1)
    assert "labels" not in json.loads((tmp_path / "plain" / "samples.json").read_text())


def test_compare_draws_a_table_over_guidance(labelled, tmp_path):
    args = ["--labels", 3, 7, 1, "--guidance", 0, 1, 1.0000001, "--sample_num", 6, "--sample_info", "DDIM_2_0p0"]
    sample(labelled, tmp_path, *args, mode="compare")
    made = pictures(tmp_path)
    assert list(made) == ["digits_DDIM_2_0p0_guidance.png"]
    table = pixels(made["digits_DDIM_2_0p0_guidance.png"])
    assert table.shape[0] == 18 + 8 + 3 * 44  # the three classes
    sample(labelled, tmp_path / "b", "--sample_info", "DDIM_1_0p0", "DDIM_2_0p0", mode="compare")
    assert sorted(pictures(tmp_path / "b")) == ["digits_compare.csv", "digits_compare.png"]


def test_a_row_of_compare_has_one_class_also_where_the_classes_have_not_as_many(labelled, tmp_path):
    ten, twelve = tmp_path / "ten", tmp_path / "twelve"
    for where in (ten, twelve):
        number = {"ten": 10, "twelve": 12}[where.name]
        args = ["--labels", 3, 7, 1, "--sample_num", number, "--sample_info", "DDIM_2_0p0"]
        sample(labelled, where, *args, mode="compare")
    ten, twelve = (pixels(pictures(where)["digits_compare.png"])[26:][:102] for where in (ten, twelve))
    missing = np.argwhere((ten != twelve).any(-1) if ten.ndim == 3 else ten != twelve)
    assert missing.min(0).tolist() >= [34, ten.shape[1] - 40] and (ten[tuple(missing.T)] == 0).all()


@pytest.mark.slow
def test_evaluate_says_which_share_is_as_asked_for(labelled, tmp_path):
    run = sample(labelled, tmp_path, "--sample_num", 40, "--sample_info", "DDIM_2_0p0", "--labels", 3, 8,
                 "--guidance", 1, 3, mode="evaluate")  # fmt: skip
    assert run.stdout.count("taken for the class that was asked for") == 2
    for suffix, guidance in (("", 1), ("_guidance3", 3)):
        report = json.loads(pictures(tmp_path)[f"digits_DDIM_2_0p0{suffix}_evaluate.json"].read_text())
        assert report["labels"] == ["3", "8"] and report["guidance"] == guidance
        asked, shares = report["as_asked"], report["classes"]["shares"]
        assert set(asked["by_class"]) == {"3", "8"} and 0.9 < asked["real"] <= 1
        assert asked["share"] == pytest.approx(sum(asked["by_class"].values()) / 2)
        assert asked["by_class"]["3"] / 2 <= shares[3] + 1e-9  # no more than are taken for a 3 at all


def test_flags_that_a_network_cannot_follow_are_refused(labelled, trained, tmp_path):
    def run(model, *args, mode="random_gen"):
        return in_process("test_solver.py", "--model_path", model, "--test_mode", mode, "--save_dir", tmp_path, *args)

    refused(run(labelled, "--labels", "cat"), 2, "'cat'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
    refused(run(trained, "--labels", "3"), 2, "digits.pt, --labels and", "trained without labels: leave them")
    refused(run(trained, "--guidance", "2"), 2, "trained without labels")
    refused(run(labelled, "--guidance", "-1"), 2, "--guidance", "-1 is not from 0")
    refused(run(labelled, "--guidance", "nan"), 2, "--guidance")
    refused(run(labelled, "--guidance", "two"), 2, "--guidance", "'two'")
    refused(run(labelled, "--labels", "3", mode="interpolate"), 2, "--labels is for")
    refused(run(labelled, "--guidance", "1", "2", "--sample_dir", tmp_path / "d"), 2, "one --guidance")
    sample(labelled, tmp_path, "--sample_info", "DDIM_2_0p0", "--diffusion_step", 2, "--lambda_num", 2, "--sample_num",
           1, mode="interpolate")  # fmt: skip


@pytest.mark.slow
def test_a_network_without_dropped_labels_has_no_guidance(tmp_path):
    settings = LABELLED | {"label_dropout": 0, "max_steps": 1}
    assert train(tmp_path, settings=settings).returncode == 0
    base = ["--model_path", tmp_path / "digits" / "digits.pt", "--save_dir", tmp_path, "--sample_info", "DDIM_1_0p0"]
    refused(in_process("test_solver.py", *base, "--test_mode", "random_gen", "--guidance", 2), 2, "label_dropout=0")
    refused(in_process("test_solver.py", *base, "--test_mode", "interpolate"), 2, "label_dropout=0", "interpolate")
    assert in_process("test_solver.py", *base, "--test_mode", "random_gen", "--sample_num", 10).returncode == 0


# --- sharing ----------------------------------------------------------------------------------------------------------


def labelled_run():
    names = ["red", "green", "blue"]
    return small_run(num_classes=3, class_names=names)


@pytest.mark.slow
def test_labels_are_exported_and_come_back(tmp_path):
    run, folder = labelled_run(), tmp_path / "sprites"
    export_folder(run, folder)
    unet = UNet2DModel.from_pretrained(folder / "unet")
    assert unet.config.num_class_embeds == 4
    x, t, labels = noisy(4, 3, 16, 16), torch.tensor([0, 300, 999, 5]), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t, labels), unet(x, t, labels).sample, rtol=0, atol=1e-5)
        assert (run.model(x, t) - run.model(x, t, labels)).abs().amax((1, 2, 3)).min(0).indices == 3
    back = import_folder(folder)
    assert back.recipe == run.recipe and all(map(torch.equal, back.model.parameters(), run.model.parameters()))
    (folder / "recipe.json").unlink()
    back = import_folder(folder)  # without it, each embedding is a class, and no label is one more
    assert back.recipe["num_classes"] == 4 and back.recipe["label_dropout"] == 0
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t, labels), back.model(x, t, labels), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_model_card_of_labels_shows_how_to_draw_them(labelled, tmp_path):
    assert in_process("convert.py", labelled, tmp_path / "digits-diffusers").returncode == 0
    card = (tmp_path / "digits-diffusers" / "README.md").read_text()
    assert "Class-conditional" in card and "9 9; 10: no label" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('"digits-diffusers"', f"{str(tmp_path)!r}")
    code = code.replace(repr(str(tmp_path)), repr(str(tmp_path / "digits-diffusers"))).replace("=50", "=2")
    names = {}
    exec(code, names)
    assert len(names["pictures"]) == 16
    weights = tmp_path / "shared.safetensors"
    assert in_process("convert.py", tmp_path / "digits-diffusers", weights).returncode == 0
    assert torch.equal(load_run(weights).sample(3, "DDIM_2_0p0"), load_run(labelled).sample(3, "DDIM_2_0p0"))


def test_another_number_of_labels_than_a_foreign_network_has_is_refused():
    theirs = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [32]}
    shape = {"image_size": 8, "model_channels": 32, "channel_mult": [1], "num_heads": 4}
    shape |= {"attention_resolutions": [], "norm_groups": 32}
    for more, num_classes, says in (({}, 3, "must be None"), ({"num_class_embeds": 5}, 3, "num_classes must be 4")):
        with pytest.raises(ConfigError, match=says):
            build(plain_recipe("Sprites", **shape, diffusers_unet=theirs | more, num_classes=num_classes))
