"""Class labels of every data set, in the order of the pictures, also where files are skipped."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from helpers.systems import linux
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

import datasets.mnist
from datasets import DataError, find_images, find_labels, load_images, load_labelled
from runs.recipe import plain_recipe
from training.pictures import with_classes

rng = np.random.default_rng(0)


def labels_of(name, path, split, classes=None):
    return find_labels(name, find_images(name, path, split, False), path, split, classes)


def write_idx(folder, part, labels, compress=True):
    """Pictures whose pixels are 10 times their label, and the labels, as LeCun's page describes both files."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(10 * np.array(labels, np.uint8), 784)
    files = {"images-idx3": struct.pack(">IIII", 0x803, len(labels), 28, 28) + pixels.tobytes()}
    files["labels-idx1"] = struct.pack(">II", 0x801, len(labels)) + bytes(labels)
    for kind, data in files.items():
        name = f"{part}-{kind}-ubyte" + ".gz" * compress
        (folder / name).write_bytes(gzip.compress(data) if compress else data)


# --- each data set ---


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name, at", [("Mnist", "MNIST/raw"), ("Mnist", ""), ("Fashion_Mnist", "FashionMNIST/raw")])
def test_idx_labels_are_read_from_beside_the_pictures(tmp_path, monkeypatch, name, at, compress):
    monkeypatch.setattr(datasets.mnist, "DEBIAN_FASHION", tmp_path / "nowhere")
    train, test = list(range(10)) + [3, 3], [9, 0]
    write_idx(tmp_path / at, "train", train, compress)
    write_idx(tmp_path / at, "t10k", test, compress)
    labels, classes = labels_of(name, tmp_path, "train")
    assert labels.dtype == np.int64 and labels.tolist() == train and len(classes) == 10
    assert classes[3] == {"Mnist": "3", "Fashion_Mnist": "dress"}[name]
    assert labels_of(name, tmp_path, "all", classes)[0].tolist() == train + test
    images, labels, _ = load_labelled(name, tmp_path, "test", 8, 1, classes)
    assert (images[:, 0, 0, 0] == 10 * labels).all() and labels.tolist() == test
    next(tmp_path.rglob("train-labels*")).unlink()
    assert len(load_images(name, tmp_path, "train", 8, 1)) == 12  # pictures alone need no labels
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        labels_of(name, tmp_path, "train")


def test_the_labels_of_debians_fashion_mnist_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.mnist, "DEBIAN_FASHION", tmp_path / "debian")
    write_idx(tmp_path / "debian", "train", [7, 9])
    labels, classes = labels_of("Fashion_Mnist", tmp_path / "data", "train")
    assert labels.tolist() == [7, 9] and (classes[7], classes[9]) == ("sneaker", "ankle boot")


def test_the_labels_of_the_old_mnist_files_are_read(tmp_path):
    parts = [([0.5] * 784, 4), ([0.25] * 784, 2), ([0] * 784, 7)]
    content = tuple((np.array([pixels], np.float32), np.array([label])) for pixels, label in parts)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content)))
    digits = [str(i) for i in range(10)]
    assert labels_of("Mnist", tmp_path, "train", digits)[0].tolist() == [4, 2]
    assert labels_of("Mnist", tmp_path, "test", digits)[0].tolist() == [7]
    folder = tmp_path / "old" / "processed"
    folder.mkdir(parents=True)
    for part, labels in (("training", [5, 1]), ("test", [8])):
        torch.save((torch.zeros(len(labels), 28, 28, dtype=torch.uint8), torch.tensor(labels)), folder / f"{part}.pt")
    assert labels_of("Mnist", tmp_path / "old", "all", digits)[0].tolist() == [5, 1, 8]


def test_the_labels_of_digits_are_those_of_scikit_learn():
    every = load_digits().target.tolist()
    assert labels_of("Digits", "", "train")[0].tolist() == every[:1500]
    assert labels_of("Digits", "", "test")[0].tolist() == every[1500:]


@pytest.mark.parametrize("key", ["labels", b"labels"])
def test_cifar10_labels_are_read(tmp_path, key):
    labels = [3, 5]
    pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, axis=1)
    for name in [f"data_batch_{i}" for i in range(1, 6)]:
        (tmp_path / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    images, numbers, _ = load_labelled("Cifar10", tmp_path, "train", 32, 3)
    assert numbers.tolist() == [3, 5] * 5 and (images[:, 0, 0, 0] == numbers).all()
    assert labels_of("Cifar10", tmp_path, "train")[1][3:6] == ["cat", "deer", "dog"]
    recipe = plain_recipe("Cifar10", num_classes="auto") | {"dataset": "Cifar10", "data_path": str(tmp_path)}
    chosen = with_classes(recipe)  # a training takes those that occur
    assert (chosen["num_classes"], chosen["class_names"]) == (2, ["cat", "dog"])
    assert labels_of("Cifar10", tmp_path, "train", chosen["class_names"])[0].tolist() == [0, 1] * 5
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({"data": pixels}))
    assert len(load_images("Cifar10", tmp_path, "train", 32, 3)) == 10
    with pytest.raises(DataError, match="labels"):
        labels_of("Cifar10", tmp_path, "train")


def test_flowers_have_the_number_in_the_authors_table(tmp_path):
    jpg = tmp_path / "jpg"
    jpg.mkdir()
    for i in (1, 3, 4):
        Image.new("RGB", (20, 20)).save(jpg / f"image_{i:05d}.jpg")
    (jpg / "._image_00001.jpg").write_bytes(b"hidden, as macOS leaves them")
    with pytest.raises(DataError, match=r"imagelabels\.mat"):
        labels_of("Flower102", tmp_path, "all")
    savemat(tmp_path / "setid.mat", {"trnid": [[1]], "valid": [[4]]})
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 77]], np.uint8)})
    for path in (tmp_path, jpg):  # the tables are in data_path or beside it
        assert [file.stem for file in find_images("Flower102", path, "train")] == ["image_00001", "image_00004"]
        labels, classes = labels_of("Flower102", path, "all")
        assert [classes[label] for label in labels] == ["77", "102", "77"] and len(classes) == 102
    (jpg / "image_00005.jpg").write_bytes(b"beyond the table")
    with pytest.raises(DataError, match="image_00005"):
        labels_of("Flower102", tmp_path, "all")


# --- folders, and files that are skipped ---


def colours(folder):
    """A folder with a subfolder a colour, in which some files are no pictures, and one picture without a class."""
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 200, 0)), ("blue/deep", (0, 0, 200))):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9), colour).save(folder / name / f"{i}.png")
    (folder / "green" / "1.png").write_bytes(b"no picture")
    (folder / "green" / "0.txt").write_text("no picture")
    Image.new("RGB", (9, 9), (90, 90, 90)).save(folder / "top.png")


def check_colours(images, labels):
    classes = images.reshape(len(images), 3, -1).mean(2).argmax(1)  # 0 red, 1 green, 2 blue
    grey = images[:, :2, 0, 0].min(1) > 0
    assert len(images) == 12 and grey.sum() == 1 and (labels[grey] == 3).all()  # 3: it has no class
    assert (np.array([2, 1, 0])[labels[~grey]] == classes[~grey]).all()  # blue, green, red


@pytest.mark.parametrize("cache", ["written", "cut short", "of other files", "of an earlier version"])
def test_labels_fit_the_pictures_where_files_are_skipped(tmp_path, cache, capsys):
    colours(tmp_path)
    assert labels_of("Folder", tmp_path, "train")[1] == ["blue", "green", "red"]
    check_colours(*load_labelled("Folder", tmp_path, "train", 8, 3)[:2])
    (file,) = (tmp_path / ".cache").iterdir()
    whole = file.read_bytes()
    capsys.readouterr()
    if cache == "cut short":
        file.write_bytes(whole[:-8])
    elif cache == "of other files":
        file.write_bytes(whole[: 12 * 3 * 8 * 8] + (np.arange(12, dtype="<i8") + 9).tobytes())
    elif cache == "of an earlier version":  # which had the number of pictures in the name, and the rows beside it
        for suffix in (".u8", ".rows"):
            file.with_name(f"{file.stem}_12{suffix}").write_bytes(whole)
        file.unlink()
    for again in (cache == "written", True):
        check_colours(*load_labelled("Folder", tmp_path, "train", 8, 3)[:2])
        assert ("from the cache" in capsys.readouterr().out) is again
    assert list((tmp_path / ".cache").iterdir()) == [file]


def test_labels_fit_the_pictures_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    colours(tmp_path)
    (tmp_path / ".cache").write_text("a file with the name of the cache folder")
    check_colours(*load_labelled("Folder", tmp_path, "train", 8, 3)[:2])


def test_labels_are_numbered_by_the_classes_of_a_training(tmp_path):
    colours(tmp_path)
    labels, classes = labels_of("Folder", tmp_path, "all", ["red", "blue"])
    assert (
        classes == ["red", "blue"] and set(labels[:4]) == {1} and set(labels[4:8]) == {2} and set(labels[8:-1]) == {0}
    )


def test_only_a_subfolder_with_a_picture_is_a_class(tmp_path):
    colours(tmp_path)
    for name in ("captions", "broken", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "captions" / "0.txt").write_text("a red picture")
    Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(tmp_path / "broken" / "0.png")
    os.truncate(tmp_path / "broken" / "0.png", 1000)
    assert labels_of("Folder", tmp_path, "train")[1] == ["blue", "green", "red"]
    images, labels, _ = load_labelled("Folder", tmp_path, "train", 8, 3)
    check_colours(images, labels)
    recipe = {"dataset": "Folder", "data_path": str(tmp_path), "split": "train", "num_classes": "auto"}
    recipe = with_classes(plain_recipe("Mine", **recipe | {"image_size": 8}))
    assert (recipe["num_classes"], recipe["class_names"]) == (3, ["blue", "green", "red"])


@linux
def test_a_folder_of_any_bytes_is_a_class(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / os.fsdecode(b"caf\xe9") / "0.png")
    assert labels_of("Folder", tmp_path, "train")[1] == ["caf\ufffd"]


# --- refusals ---


def test_data_without_labels_are_refused(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="subfolders"):
        labels_of("Folder", tmp_path, "train")
    with pytest.raises(DataError, match="Emoji"):
        find_labels("Emoji", [], tmp_path, "train")


@pytest.mark.parametrize("labels", [[1], [1, 10], [1, 300], [0.5, 1], [[1, 2]], ["a", "b"], None, [[1], [2, 3]]])
def test_labels_that_are_no_class_of_each_picture_are_refused(tmp_path, labels):
    images = np.zeros((2, 784), np.float32)
    content = [(images[:1], [0]), (images[:1], [0]), (images, labels)]
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content)))
    with pytest.raises(DataError, match="labels"):
        labels_of("Mnist", tmp_path, "test")
