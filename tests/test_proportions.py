"""Classes of samples in the proportions of the data: the order, previews, evaluate and its report."""

import json

import numpy as np
import pytest
import torch
from helpers.scripts import LABELLED, in_process, refused, train
from PIL import Image
from sklearn.datasets import load_digits

from datasets import DataError
from diffusion import SampleSpec, sample
from diffusion.guidance import with_labels
from evaluation.distances import Reference, frechet
from evaluation.real_pictures import labels_like
from runs.labels import in_proportion
from runs.run import Run, load_run
from utils.pictures import save_by_class

FLOWERS = np.random.default_rng(0).integers(40, 259, 102)  # as many classes, and pictures of each, as Flower102 has


@pytest.mark.parametrize("sizes", [[1] * 10, [5, 5, 5], [1, 10], [3, 0, 100, 1], FLOWERS], ids=str)
def test_all_first_samples_are_nearly_in_proportion(sizes):
    sizes = np.array(sizes)
    order = in_proportion(sizes, 2 * sizes.sum())
    if len(set(sizes)) == 1:
        assert order == list(range(len(sizes))) * 2 * sizes[0]  # in turn, as without sizes
    counts = (np.array(order)[:, None] == np.arange(len(sizes))).cumsum(0)
    expected = np.arange(1, len(order) + 1)[:, None] * sizes / sizes.sum()
    assert (counts - expected).max() < 1  # only a class that is below its share is drawn
    assert (expected - counts).max() < 2  # none waits for long
    assert (counts[sizes.sum() - 1] == sizes).all() and (counts[-1] == 2 * sizes).all()


def test_real_pictures_of_every_class_in_turn_are_far_from_data_of_unequal_classes():
    """Features with means that lie apart, one to a hundred; in the proportions of the data they are near."""
    generator, sizes = torch.Generator().manual_seed(0), np.geomspace(1, 100, 10).round().astype(int)
    means = 5 * torch.randn(10, 4, generator=generator)

    def drawn(labels):
        return means[labels] + torch.randn(len(labels), 4, generator=generator)

    real = Reference(drawn(in_proportion(sizes, 3000)))
    near, error = frechet(drawn(in_proportion(sizes, 500)), real)
    far, _ = frechet(drawn([*range(10)] * 50), real)
    assert near < 3 * error and far > 20 * error


def test_evaluate_draws_in_the_proportions_of_the_split(labelled, tmp_path, monkeypatch):
    seen, batches = [], Run.batches
    monkeypatch.setattr(
        Run, "batches", lambda self, *args, **keys: seen.append(keys["labels"]) or batches(self, *args, **keys)
    )
    command = ["--model_path", labelled, "--test_mode", "evaluate", "--sample_num", 30, "--sample_info", "DDIM_1_0p0"]
    sizes = np.bincount(load_digits().target[1500:])
    for flags, how in (
        (["--split", "test"], "in the proportions of the test split"),
        (["--classes", "even"], "in turn"),
        (["--labels", 3, 8], "in turn"),
    ):
        folder = tmp_path / "_".join(map(str, flags))
        run = in_process("test_solver.py", *command, "--save_dir", folder, *flags)
        assert run.returncode == 0 and f"; classes {how}" in run.stdout, run.stderr
        assert json.loads(next(folder.glob("*.json")).read_text())["classes_drawn"] == how
    assert seen == [in_proportion(sizes, 30), list(range(10)), [3, 8]]
    assert seen[0] != [*range(10)] * 3
    run = in_process("test_solver.py", *command, "--save_dir", tmp_path, "--labels", 3, "--classes", "proportional")
    refused(run, 2, "--classes", "--labels")


def test_data_without_these_classes_are_compared_with_every_class_evenly(tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for dataset, data_path in (("Digits", "none"), ("Folder", tmp_path)):
        data = {"dataset": dataset, "data_path": data_path}
        assert labels_like(data, "train", ["cat", "dog"], 5) is None
    with pytest.raises(DataError, match="no data"):  # before anything is drawn
        labels_like({"dataset": "Mnist", "data_path": tmp_path}, "train", ["0", "1"], 5, download=False)
    assert capsys.readouterr().out.count("of every class evenly") == 2


def test_previews_are_in_the_proportions_of_the_pictures(tmp_path, monkeypatch):
    """A folder with four times as many pictures of one class as of the other."""
    for name, count in (("few", 4), ("many", 16)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 10 * i).save(tmp_path / "data" / name / f"{i}.png")
    block = f"{{data_path: {tmp_path / 'data'}, image_size: 8, image_channel: 1}}"
    (tmp_path / "c.yaml").write_text(f"Train_Setting: {{}}\nTrain_Data: {{Own: {block}}}\n")
    settings = LABELLED | {"sample_num": 10, "max_steps": 1}
    ended = train(tmp_path, "--config", tmp_path / "c.yaml", data_name="Own", settings=settings)
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.glob("*/*.pt")
    run, labels = load_run(file), [1, 1, 0, 1, 1] * 2
    noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(run.recipe["seed"]))
    network = with_labels(run.model, torch.tensor(labels), 1.0, no_label=2)
    x = sample(run.diffusion, network, noise, SampleSpec.parse("DDIM_2_0p0"), torch.Generator())
    by_hand = save_by_class(x, ["few", "many"], tmp_path / "by_hand.png", labels)
    preview = Image.open(file.with_name("preview_00000001.png"))
    assert preview.size == Image.open(by_hand).size and preview.size[0] > 8 * 34
    assert np.abs(np.asarray(preview).astype(int) - np.asarray(Image.open(by_hand))).max() <= 1  # sums in another order
