"""Every loader on files in the original format, which are written here by independent means."""

import gzip
import io
import os
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision.datasets.mnist import read_image_file

import datasets.mnist
from datasets import DataError, find_images, load_images

rng = np.random.default_rng(0)


def write_idx(file, pictures, compress=True):
    """As LeCun's page describes it: magic number 0x00000803, three big-endian sizes, bytes."""
    data = struct.pack(">IIII", 0x803, *pictures.shape) + pictures.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if compress else data)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its str, which the original files of the data sets contain."""

    def save_str(self, text):
        self.write(b"T" + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {bytes: save_str}


def pickled(content, python):
    file = io.BytesIO()
    (Python2Pickler if python == 2 else pickle.Pickler)(file, 2).dump(content)
    return file.getvalue()


def two_splits(folder, compress=True):
    ending = ".gz" if compress else ""
    train, test = rng.integers(0, 256, (7, 28, 28), np.uint8), rng.integers(0, 256, (3, 28, 28), np.uint8)
    write_idx(folder / f"train-images-idx3-ubyte{ending}", train, compress)
    write_idx(folder / f"t10k-images-idx3-ubyte{ending}", test, compress)
    return train, test


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.mnist, "DEBIAN_FASHION", tmp_path / "nowhere")


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    "name, at", [("Mnist", ""), ("Mnist", "raw"), ("Mnist", "MNIST/raw"), ("Fashion_Mnist", "FashionMNIST/raw")]
)
def test_idx_files_are_found_in_every_layout(tmp_path, no_debian, name, at, compress):
    train, test = two_splits(tmp_path / at, compress)
    assert (find_images(name, tmp_path, "train", download=False) == train).all()
    assert (find_images(name, tmp_path, "test", download=False) == test).all()
    assert (find_images(name, tmp_path, "all", download=False) == np.concatenate([train, test])).all()


def test_the_fashion_mnist_of_debian_is_found_without_data_path(tmp_path, monkeypatch):
    train, _ = two_splits(tmp_path / "debian")
    monkeypatch.setattr(datasets.mnist, "DEBIAN_FASHION", tmp_path / "debian")
    assert (find_images("Fashion_Mnist", tmp_path / "data", "train", download=False) == train).all()


def test_torchvision_reads_the_idx_files_of_these_tests(tmp_path):
    train, _ = two_splits(tmp_path, compress=False)
    assert (read_image_file(str(tmp_path / "train-images-idx3-ubyte")).numpy() == train).all()


@pytest.mark.parametrize("damage", ["cut gzip", "cut idx", "no idx"])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, damage):
    two_splits(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut gzip": whole[:-100],
            "cut idx": gzip.compress(gzip.decompress(whole)[:-1]),
            "no idx": gzip.compress(b"<html>not found</html>"),
        }[damage]
    )
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        find_images("Mnist", tmp_path, "train", download=False)


def test_a_file_of_labels_is_not_taken_for_pictures(tmp_path):
    two_splits(tmp_path)
    labels = struct.pack(">II", 0x801, 5) + bytes(5)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(DataError, match=r"\(5,\), not grey pictures"):
        find_images("Mnist", tmp_path, "train", download=False)


@pytest.mark.parametrize("name, source", [("Mnist", "MNIST"), ("Fashion_Mnist", "FashionMNIST")])
def test_a_download_that_leaves_nothing_is_refused(tmp_path, no_debian, monkeypatch, name, source):
    monkeypatch.setattr(f"torchvision.datasets.{source}", type(source, (), {"__init__": lambda self, *_, **__: None}))
    with pytest.raises(DataError, match=rf"{name}: no data in .* train-images-idx3-ubyte"):
        find_images(name, tmp_path, "train", download=True)


@pytest.mark.parametrize("python", [2, 3])
def test_the_old_mnist_pickle_is_read(tmp_path, python):
    pixels = [rng.integers(0, 256, (n, 784), np.uint8) for n in (5, 2, 3)]
    content = tuple(((p / np.float32(256)).astype(np.float32), np.arange(len(p))) for p in pixels)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickled(content, python)))
    train = find_images("Mnist", tmp_path, "train", download=False)
    # the file has p / 256, and rounding it to 0 … 255 over [0, 1] changes it by at most one level
    assert train.shape == (7, 28, 28) and train.dtype == np.uint8
    assert abs(train.reshape(7, 784).astype(int) - np.concatenate(pixels[:2])).max() <= 1
    test = find_images("Mnist", tmp_path / "mnist.pkl.gz", "test", download=False)  # data_path may be the file itself
    assert abs(test.reshape(3, 784).astype(int) - pixels[2]).max() <= 1


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name, at", [("Fashion_Mnist", "FashionMNIST"), ("Mnist", "MNIST")])
def test_the_old_processed_files_are_read(tmp_path, no_debian, name, at, legacy):
    folder = tmp_path / at / "processed"
    folder.mkdir(parents=True)
    pictures = {
        "training": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "test": rng.integers(0, 256, (2, 28, 28), np.uint8),
    }
    for part, array in pictures.items():
        pair = (torch.from_numpy(array), torch.arange(len(array)))
        torch.save(pair, folder / f"{part}.pt", _use_new_zipfile_serialization=not legacy)
    assert (find_images(name, tmp_path, "train", download=False) == pictures["training"]).all()
    assert (find_images(name, tmp_path, "test", download=False) == pictures["test"]).all()
    (folder / "training.pt").write_bytes((folder / "training.pt").read_bytes()[:300])
    with pytest.raises(DataError, match=r"training\.pt"):
        find_images(name, tmp_path, "train", download=False)


@pytest.mark.parametrize("python, key", [(2, b"data"), (3, b"data"), (3, "data")])
def test_cifar10_batches_are_read(tmp_path, python, key):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pictures = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pictures[name] = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
        rows = np.stack([np.concatenate([p[..., c].flatten() for c in range(3)]) for p in pictures[name]])
        (folder / name).write_bytes(pickled({key: rows, b"labels": [0] * 4}, python))
    train = find_images("Cifar10", tmp_path, "train", download=False)
    assert (train == np.concatenate([pictures[f"data_batch_{i}"] for i in range(1, 6)])).all()
    assert (find_images("Cifar10", folder, "test", download=False) == pictures["test_batch"]).all()
    nchw = load_images("Cifar10", tmp_path, "test", 32, 3)
    assert (nchw == pictures["test_batch"].transpose(0, 3, 1, 2)).all()


def test_a_malicious_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(Evil())))
    with pytest.raises(DataError, match="system"):
        find_images("Mnist", tmp_path, "train", download=False)
    for name in [f"data_batch_{i}" for i in range(1, 6)]:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match="system"):
        find_images("Cifar10", tmp_path, "train", download=False)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"data": [1]})])
def test_foreign_pickles_are_refused_by_name(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        find_images("Cifar10", tmp_path, "test", download=False)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz"):
        find_images("Mnist", tmp_path, "test", download=False)


@pytest.mark.parametrize("pixel", [-0.1, 1.5, np.nan, np.inf, None])
def test_pixels_outside_the_range_of_the_mnist_pickle_are_refused(tmp_path, pixel):
    images = np.zeros((2, 784), object)
    images[1, 5] = pixel
    images = images if pixel is None else images.astype(np.float32)
    content = [(images, [0, 1])] * 3
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content)))
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz .*pixels outside \[0, 1\]"):
        find_images("Mnist", tmp_path, "train")


@pytest.mark.parametrize("wrong", [[["x"]], [[np.nan]], [[np.inf]], None])
def test_a_crafted_table_of_flowers_is_refused(tmp_path, wrong):
    (tmp_path / "image_00001.jpg").write_bytes(b"never opened")
    savemat(tmp_path / "setid.mat", {"trnid": [[1]]} | ({} if wrong is None else {"valid": wrong}))
    with pytest.raises(DataError, match=r"setid\.mat is not the authors' table of splits"):
        find_images("Flower102", tmp_path, "train")


def test_flower102_has_the_splits_of_its_authors(tmp_path):
    jpg = tmp_path / "flowers-102" / "jpg"
    jpg.mkdir(parents=True)
    for i in range(1, 7):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(jpg / f"image_{i:05d}{'.jpg' if i % 2 else '.JPEG'}")
    with pytest.raises(DataError, match=r"setid\.mat"):
        find_images("Flower102", tmp_path, "train", download=False)
    savemat(tmp_path / "flowers-102" / "setid.mat", {"trnid": [[2]], "valid": [[4]], "tstid": [[1, 3, 5, 6]]})
    numbers = {
        s: [int(f.stem[-5:]) for f in find_images("Flower102", tmp_path, s, False)] for s in ("train", "test", "all")
    }
    assert numbers == {"train": [2, 4], "test": [1, 3, 5, 6], "all": [1, 2, 3, 4, 5, 6]}
    (jpg / "setid.mat").write_bytes(b"another file of this name")  # found before the good one
    with pytest.raises(DataError, match=r"jpg/setid\.mat is not"):
        find_images("Flower102", tmp_path, "train", False)
    (jpg / "setid.mat").unlink()
    for file in list(jpg.iterdir()):
        file.rename(file.with_stem(file.stem.replace("image", "flower")))
    with pytest.raises(DataError, match="no pictures of the train split"):
        find_images("Flower102", tmp_path, "train", False)
    pictures = load_images("Flower102", jpg, "all", 16, 3)
    assert pictures.shape == (6, 3, 16, 16)
    assert abs(pictures[:, 0].mean((1, 2)) - 40 * np.arange(1, 7)).max() < 3  # the rounding of JPEG


def test_digits_are_those_of_scikit_learn():
    every = find_images("Digits", "unused", "all")
    assert (every / 255 * 16).round().astype(int).tolist() == load_digits().images.astype(int).tolist()
    train, test = find_images("Digits", "unused", "train"), find_images("Digits", "unused", "test")
    assert len(train) == 1500 and len(test) == 297 and (np.concatenate([train, test]) == every).all()


@pytest.mark.parametrize("name", ["Mnist", "Fashion_Mnist", "Cifar10", "Flower102"])
def test_missing_data_are_refused_with_the_files_to_add(tmp_path, no_debian, name):
    wanted = {"Mnist": "train-images-idx3", "Fashion_Mnist": "train-images-idx3", "Cifar10": "data_batch_1"}
    with pytest.raises(DataError, match=f"{name}.*{re.escape(str(tmp_path))}.*{wanted.get(name, 'image_00001.jpg')}"):
        find_images(name, tmp_path, "train", download=False)


def test_grey_pictures_are_loaded_as_rgb_and_resized(tmp_path):
    train, _ = two_splits(tmp_path)
    as_rgb = load_images("Mnist", tmp_path, "train", 28, 3)
    assert (as_rgb == train[:, None].repeat(3, 1)).all()
    small = load_images("Digits", "unused", "train", 16, 1)
    assert small.shape == (1500, 1, 16, 16)
