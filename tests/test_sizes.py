"""Pictures that are not square: image_size as [height, width], from the folder to a sample, a report and diffusers."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.networks import noisy, randomise
from helpers.pictures import numbered, pictures, pixels, sample
from helpers.pipelines import equals_ten_ddim_steps, save_pipeline
from helpers.scripts import in_process, refused, state_hash, train
from PIL import Image
from test_published import published

from datasets import load_images
from evaluation.features import classifier_file, shipped_classifier
from evaluation.numbers import look
from models import UNet
from models.diffusers_unet import DiffusersUNet
from runs.config import load_recipe
from runs.run import load_run
from sharing.diffusers_folder import export_folder, import_folder
from utils.pictures import grid

SETTINGS = {"channel_mult": "1,2", "max_steps": 3, "save_every": 2}
DDIM, FEW = ("--sample_info", "DDIM_3_0p0"), ("--sample_info", "DDPM_4_0p0", "--jump_length", 2, "--resamplings", 2)


def save_pictures(folder, count, height, width, channels=1):
    """Noise, enlarged to 10x10 pixels a value."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 256, (height // 10, width // 10, channels), np.uint8)
        Image.fromarray(np.kron(values, np.ones((10, 10, 1), np.uint8)).squeeze()).save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """(checkpoint, pictures): a tiny run of three steps at [16, 24], stopped and resumed after two; (20, 1, 16, 24)."""
    folder = tmp_path_factory.mktemp("wide")
    save_pictures(folder / "pictures", 20, 50, 60)
    text = f"{{Train_Setting: {{}}, Train_Data: {{Wide: {{data_path: {folder / 'pictures'}, image_size: [16, 24]}}}}}}"
    (folder / "c.yaml").write_text(text.replace("image_size", "image_channel: 1, image_size"))
    args, runs = ("--config", folder / "c.yaml"), []
    for save_dir, steps in (("runs", 2), ("runs", 3), ("whole", 3)):
        runs.append(train(folder / save_dir, *args, data_name="Wide", settings=SETTINGS | {"max_steps": steps}))
        assert runs[-1].returncode == 0, runs[-1].stderr
    assert "(8, 1, 16, 24)" in runs[0].stdout and "resuming from step 2" in runs[1].stdout
    checkpoint = folder / "runs" / "wide" / "wide.pt"
    assert state_hash(checkpoint) == state_hash(folder / "whole" / "wide" / "wide.pt")
    assert pixels(checkpoint.parent / "preview_00000003.png").shape == (3 * 18 + 2, 3 * 26 + 2, 3)
    return checkpoint, np.array(load_images("Folder", folder / "pictures", "train", [16, 24], 1))


# --- from end to end ---


def test_samples_have_the_size_of_the_training(wide, tmp_path):
    sample(wide[0], tmp_path / "r", *DDIM, "--sample_num", 4, "--sample_dir", tmp_path / "d")
    assert numbered(tmp_path / "d", 4).shape == (4, 16, 24)
    assert json.loads((tmp_path / "d" / "samples.json").read_text())["image_size"] == [16, 24]
    final = pixels(pictures(tmp_path / "r")["wide_DDIM_3_0p0_final.png"])
    assert (final[2 + 18 : 36, 2 + 26 : 52, 0] == numbered(tmp_path / "d", 4)[3]).all()  # row and column 1 of 2x2


def test_interpolations_and_edits_start_from_whole_pictures(wide, tmp_path):
    sample(wide[0], tmp_path, *DDIM, "--sample_num", 4, "--lambda_num", 3, mode="interpolate")
    picture = pixels(pictures(tmp_path)["wide_DDIM_3_0p0_interpolate.png"])
    assert picture.shape == (18 + 8 + 2 * (16 + 8), 16 + 5 * (24 + 8))  # a line of labels, and 8 pixels around each
    assert picture[26:42, 16:40].tobytes() in {known.tobytes() for known in wide[1]}
    tmp_path = tmp_path / "edit"  # two calls in one second would have other names
    sample(wide[0], tmp_path, *DDIM, "--image_indices", 4, 9, "--edit_mode", "sdedit", "ddim", mode="edit")
    for name in ("wide_DDIM_3_0p0_edit.png", "wide_DDIM_3_0p0_ddim_edit.png"):
        first = pixels(pictures(tmp_path)[name])[8:, -(2 * 26 + 2) - 8 : -8][:20]
        assert (first[2:18, 2:26] == wide[1][4, 0]).all() and (first[2:18, 28:52] == wide[1][9, 0]).all()


def test_a_box_and_a_mask_have_width_and_height_in_their_places(wide, tmp_path):
    hole, args = np.zeros((16, 24), bool), ("--image_indices", 3, "--sample_num", 1, *FEW)
    hole[1:9, 14:23] = True
    Image.fromarray(hole).save(tmp_path / "m.png")
    sample(wide[0], tmp_path / "b", *args, "--mask_box", 14, 1, 9, 8, mode="inpaint")
    sample(wide[0], tmp_path / "m", *args, "--mask", tmp_path / "m.png", mode="inpaint")
    box, mask = (pixels(pictures(tmp_path / name)["wide_DDPM_4_0p0_inpaint.png"])[..., 0] for name in "bm")
    original, masked, filled = (box[2:18, left : left + 24] for left in (2, 28, 54))
    assert (box == mask).all() and (original == wide[1][3, 0]).all() and (masked[hole] == 128).all()
    for other in (masked, filled):
        assert (other[~hole] == original[~hole]).all()
    base = ("test_solver.py", "--model_path", wide[0], "--test_mode", "inpaint", "--save_dir", tmp_path)
    refused(in_process(*base, *args, "--mask_box", 1, 14, 8, 9), 2, "beyond the pictures, which have 24x16 pixels")


def test_evaluate_measures_them(wide, tmp_path):
    sample(wide[0], tmp_path, *DDIM, "--sample_num", 10, mode="evaluate")
    report = json.loads(pictures(tmp_path)["wide_DDIM_3_0p0_evaluate.json"].read_text())
    assert report["nearest"]["n"] == 20 and 0 < report["look"]["fine_detail"] < 1
    tmp_path = tmp_path / "bits"  # two calls in one second would have other names
    sample(wide[0], tmp_path, "--bits", "--sample_info", "DDPM_3_0p0", "--sample_num", 10, mode="evaluate")
    assert json.loads(pictures(tmp_path)["wide_DDPM_3_0p0_bits.json"].read_text())["bits"] > 0


def test_shipped_classifiers_see_whole_colour_pictures(tmp_path):
    """CIFAR-10's knows 32x32: stripes of twice the length are squeezed to it, and their ends are seen, not cropped."""
    features = shipped_classifier(classifier_file("Cifar10"), torch.device("cpu")).features
    stripes = torch.randint(256, (3, 3, 32, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for turn in (lambda x: x, lambda x: x.mT):
        long = turn(stripes.expand(-1, -1, -1, 64)).clone()
        # averages along a stripe change no pixel but in the last digit of float32
        torch.testing.assert_close(features(long), features(turn(stripes.expand(-1, -1, -1, 32))), rtol=0, atol=1e-4)
        ends = long.clone()
        turn(ends)[..., -4:] = 0
        assert (features(ends) - features(long)).abs().amax(1).min() > 0.01


def test_weights_travel_to_diffusers_and_back(wide, tmp_path):
    for source, target in ((wide[0], "x.safetensors"), (wide[0], "d"), (tmp_path / "d", "y.safetensors")):
        run = in_process("convert.py", source, tmp_path / target)
        assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "d" / "unet" / "config.json").read_text())["sample_size"] == [16, 24]
    assert "grey pictures of 24x16 pixels" in (tmp_path / "d" / "README.md").read_text()
    runs = [load_run(file) for file in (wide[0], tmp_path / "x.safetensors", tmp_path / "y.safetensors")]
    assert [run.recipe["image_size"] for run in runs] == [[16, 24]] * 3
    samples = [run.sample(2, "DDIM_2_0p0") for run in runs]
    assert samples[0].shape == (2, 1, 16, 24) and all(torch.equal(samples[0], other) for other in samples[1:])
    equals_ten_ddim_steps(runs[0], tmp_path / "d", (2, 1, 16, 24))


def test_a_foreign_network_of_diffusers_keeps_its_size(tmp_path):
    config = {"sample_size": (8, 16), "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    config |= {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
    unet, x, t = save_pipeline(tmp_path / "d", **config), noisy(2, 3, 8, 16), torch.tensor([3, 800])
    run = import_folder(tmp_path / "d")
    assert isinstance(run.model, DiffusersUNet)
    assert (run.recipe["image_size"], run.recipe["attention_resolutions"]) == ([8, 16], [8])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t), unet(x, t).sample, rtol=0, atol=1e-6)  # the same code
    export_folder(run, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "unet" / "config.json").read_text())["sample_size"] == [8, 16]


def test_a_checkpoint_without_a_recipe_takes_both_sides(in_process, tmp_path):
    published(tmp_path / "x.pt", 32)
    args = ("--model_path", tmp_path / "x.pt", "--test_mode", "random_gen", "--sample_info", "DDIM_1_0p0")
    args += ("--sample_num", 1, "--save_dir", tmp_path, "--sample_dir", tmp_path / "d", "--image_size")
    run = in_process("test_solver.py", *args, "16,24")
    assert run.returncode == 0 and pixels(tmp_path / "d" / "000000.png").shape == (16, 24, 3)
    refused(in_process("test_solver.py", *args, "16"), 2, "image_size: was [16, 24], is 16", "another --sample_dir")
    for wrong in ("16,24,32", "big", "16,0"):
        refused(in_process("test_solver.py", *args, wrong), 2, "image_size must be a whole number or two", repr(wrong))
    assert load_run(tmp_path / "x.pt", image_size=(16, 24)).recipe["image_size"] == [16, 24]


# --- the parts ---


def test_image_size_is_one_number_or_two():
    def size_of(text):
        return load_recipe("config.yaml", "Emoji", [f"image_size={text}"])["image_size"]

    assert size_of("[48, 64]") == size_of("48,64") == [48, 64] and size_of("[48,48]") == size_of("48") == 48


def test_unet_of_any_shape_is_the_square_one_with_other_pictures():
    """The size chooses the levels with attention, by the shorter side, and nothing else."""
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (16,)}
    square = randomise(UNet(image_size=16, **sizes)).eval()
    for size, shape in ((16, 24), (16, 24)), ([24, 16], (24, 16)):
        other = UNet(image_size=size, **sizes).eval()
        other.load_state_dict(square.state_dict())
        x, t = noisy(2, 3, *shape), torch.tensor([3, 800])
        assert torch.equal(other(x, t), square(x, t))
    with pytest.raises(ValueError, match="image_size 48x62 .* multiple of 8"):
        UNet(image_size=(48, 62))
    with pytest.raises(ValueError, match="no feature map is 12 pixels wide; they are 16, 8"):
        UNet(image_size=(16, 24), channel_mult=(1, 2), attention_resolutions=(12,))


def test_the_crop_is_the_largest_middle_part_of_the_same_shape(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    for size, box in (
        ([12, 24], (0, 2.5, 50, 27.5)),  # twice as wide as high: 50x25 of 50x30
        ([24, 12], (17.5, 0, 32.5, 30)),  # 15x30
        ([15, 25], (0, 0, 50, 30)),  # all
    ):
        by_hand = np.asarray(photo.resize(size[::-1], Image.Resampling.BICUBIC, box)).transpose(2, 0, 1)
        assert (load_images("Folder", tmp_path, "train", size, 3)[0] == by_hand).all()
    assert {re.match(r"train_\d+x\d+px_3ch_", file.name)[0] for file in (tmp_path / ".cache").iterdir()} == {
        "train_12x24px_3ch_", "train_24x12px_3ch_", "train_15x25px_3ch_",
    }  # fmt: skip


@pytest.mark.parametrize(
    "height, width, size, says",
    [
        (40, 40, 320, ["20 of 20 pictures are enlarged 8 times"]),
        (30, 250, 30, ["the crop leaves 12 % of the median picture"]),
        (30, 250, [12, 100], []),
        (40, 60, 40, []),  # as photographs are
        (90, 160, 90, []),
        (40, 60, [90, 40], ["the crop leaves 30 % of the median picture", "20 of 20 pictures are enlarged 2.25 times"]),
    ],
)
def test_a_line_says_how_much_is_cropped_away_or_enlarged(tmp_path, height, width, size, says, capsys):
    save_pictures(tmp_path / "p", 20, height, width)
    (tmp_path / "c.yaml").write_text(f"{{Train_Setting: {{}}, Train_Data: {{A: {{data_path: {tmp_path / 'p'}}}}}}}")
    args = ("--config", tmp_path / "c.yaml", "--dry_run")
    dry = train(tmp_path, *args, data_name="A", settings={"image_size": size})
    assert dry.returncode == 0 and not (tmp_path / "p" / ".cache").exists()
    load_images("Folder", tmp_path / "p", "train", size, 1)
    for text in (dry.stderr, capsys.readouterr().err):
        lines = re.findall("the crop .*|[0-9,]+ of .* enlarged.*", text)
        assert len(lines) == len(says) and all(map(str.startswith, lines, says)), text
    load_images("Folder", tmp_path / "p", "train", size, 1)
    assert "enlarged" not in capsys.readouterr().err  # of the cache


def test_pictures_in_an_array_are_enlarged_too(capsys):
    load_images("Digits", "none", "train", [8, 16], 1)
    err = capsys.readouterr().err
    assert "1,500 of 1,500 pictures are enlarged 2 times" in err and "the crop" not in err


def test_fine_detail_counts_waves_across_and_down():
    y, x = np.mgrid[:16, :24]
    for long, short, variance in (x / 4, y / 2, 30**2), (y / 4, x / 3, 30**2 / 2):  # all values are whole numbers
        waves = 128 + 60 * np.cos(2 * np.pi * long) + 30 * np.cos(2 * np.pi * short)
        detail = look(torch.from_numpy(waves.round()).to(torch.uint8)[None, None])["fine_detail"]
        assert detail == pytest.approx(variance / (variance + 60**2 / 2), rel=1e-9)  # float64


def test_a_grid_enlarges_by_the_longer_side():
    assert [grid(torch.zeros(1, 1, *size), 1).size for size in ((16, 8), (8, 32))] == [(16, 32), (32, 8)]
