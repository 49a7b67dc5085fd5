"""Every loader on files in the real format, written here by independent means; the cache; the pixels."""

import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits, load_sample_images
from torchvision.datasets.mnist import read_image_file

import datasets.mnist
from datasets import DataError, find_images, load_images, normalize, to_uint8

rng = np.random.default_rng(0)


def write_idx(file, pictures, compress=True):
    """As LeCun's page describes it: magic 0x00000803, three big-endian sizes, bytes."""
    data = struct.pack(">IIII", 0x803, *pictures.shape) + pictures.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if compress else data)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its str, in the way that the data sets' original files hold them."""

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
def test_idx_folders(tmp_path, no_debian, name, at, compress):
    train, test = two_splits(tmp_path / at, compress)
    assert (find_images(name, tmp_path, "train", download=False) == train).all()
    assert (find_images(name, tmp_path, "test", download=False) == test).all()
    assert (find_images(name, tmp_path, "all", download=False) == np.concatenate([train, test])).all()


def test_debians_fashion_mnist_is_found_by_itself(tmp_path, monkeypatch):
    train, _ = two_splits(tmp_path / "debian")
    monkeypatch.setattr(datasets.mnist, "DEBIAN_FASHION", tmp_path / "debian")
    assert (find_images("Fashion_Mnist", tmp_path / "data", "train", download=False) == train).all()


def test_torchvision_reads_the_same_idx_files(tmp_path):
    train, _ = two_splits(tmp_path, compress=False)
    assert (read_image_file(str(tmp_path / "train-images-idx3-ubyte")).numpy() == train).all()


@pytest.mark.parametrize("damage", ["cut gzip", "cut idx", "no idx"])
def test_damaged_idx_files_are_named(tmp_path, damage):
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


@pytest.mark.parametrize("python", [2, 3])
def test_the_old_mnist_pickle(tmp_path, python):
    pixels = [rng.integers(0, 256, (n, 784), np.uint8) for n in (5, 2, 3)]
    content = tuple(((p / np.float32(256)).astype(np.float32), np.arange(len(p))) for p in pixels)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickled(content, python)))
    train = find_images("Mnist", tmp_path, "train", download=False)
    # the file holds p / 256; to the nearest of 0 … 255 over [0, 1] that is at most one level off
    assert train.shape == (7, 28, 28) and train.dtype == np.uint8
    assert abs(train.reshape(7, 784).astype(int) - np.concatenate(pixels[:2])).max() <= 1
    test = find_images("Mnist", tmp_path / "mnist.pkl.gz", "test", download=False)  # the file itself, too
    assert abs(test.reshape(3, 784).astype(int) - pixels[2]).max() <= 1


@pytest.mark.parametrize("legacy", [True, False])
def test_the_old_processed_fashion_mnist(tmp_path, no_debian, legacy):
    folder = tmp_path / "FashionMNIST" / "processed"
    folder.mkdir(parents=True)
    pictures = {
        "training": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "test": rng.integers(0, 256, (2, 28, 28), np.uint8),
    }
    for name, array in pictures.items():
        pair = (torch.from_numpy(array), torch.arange(len(array)))
        torch.save(pair, folder / f"{name}.pt", _use_new_zipfile_serialization=not legacy)
    assert (find_images("Fashion_Mnist", tmp_path, "train", download=False) == pictures["training"]).all()
    assert (find_images("Fashion_Mnist", tmp_path, "test", download=False) == pictures["test"]).all()
    (folder / "training.pt").write_bytes((folder / "training.pt").read_bytes()[:300])
    with pytest.raises(DataError, match=r"training\.pt"):
        find_images("Fashion_Mnist", tmp_path, "train", download=False)


@pytest.mark.parametrize("python, key", [(2, b"data"), (3, b"data"), (3, "data")])
def test_cifar10_batches(tmp_path, python, key):
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
def test_foreign_pickles_are_named(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        find_images("Cifar10", tmp_path, "test", download=False)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz"):
        find_images("Mnist", tmp_path, "test", download=False)


def test_flower102_all_and_its_authors_splits(tmp_path):
    jpg = tmp_path / "flowers-102" / "jpg"
    jpg.mkdir(parents=True)
    for i in range(1, 7):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(jpg / f"image_{i:05d}.jpg")
    with pytest.raises(DataError, match=r"setid\.mat"):
        find_images("Flower102", tmp_path, "train", download=False)
    savemat(tmp_path / "flowers-102" / "setid.mat", {"trnid": [[2]], "valid": [[4]], "tstid": [[1, 3, 5, 6]]})
    numbers = {
        s: [int(f.stem[-5:]) for f in find_images("Flower102", tmp_path, s, False)] for s in ("train", "test", "all")
    }
    assert numbers == {"train": [2, 4], "test": [1, 3, 5, 6], "all": [1, 2, 3, 4, 5, 6]}
    pictures = load_images("Flower102", jpg, "all", 16, 3)
    assert pictures.shape == (6, 3, 16, 16)
    assert abs(pictures[:, 0].mean((1, 2)) - 40 * np.arange(1, 7)).max() < 3  # JPEG's own rounding of a flat colour


def test_digits_are_scikit_learns():
    every = find_images("Digits", "unused", "all")
    assert (every / 255 * 16).round().astype(int).tolist() == load_digits().images.astype(int).tolist()
    train, test = find_images("Digits", "unused", "train"), find_images("Digits", "unused", "test")
    assert len(train) == 1500 and len(test) == 297 and (np.concatenate([train, test]) == every).all()


@pytest.mark.parametrize("name", ["Mnist", "Fashion_Mnist", "Cifar10", "Flower102"])
def test_missing_data_say_which_files_go_where(tmp_path, no_debian, name):
    wanted = {"Mnist": "train-images-idx3", "Fashion_Mnist": "train-images-idx3", "Cifar10": "data_batch_1"}
    with pytest.raises(DataError, match=f"{name}.*{tmp_path}.*{wanted.get(name, 'image_00001.jpg')}"):
        find_images(name, tmp_path, "train", download=False)


# --- folders of pictures ------------------------------------------------------------------------------------------


def save_every_kind(folder):
    """One picture in every kind of file: the left half red (dark where grey), the right half white, 40x20 upright."""
    rgb = Image.new("RGB", (40, 20), "white")
    rgb.paste((255, 0, 0), (0, 0, 20, 20))
    rgb.save(folder / "rgb.png")
    rgb.quantize(4).save(folder / "palette.png")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgba = rgb.convert("RGBA")
    rgba.paste((0, 0, 0, 0), (20, 0, 40, 20))  # transparent black on the right: white when laid on white
    rgba.save(folder / "rgba.png")
    rgba.quantize(4).save(folder / "transparent_palette.png")
    turned = rgb.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    turned.save(folder / "turned.png", exif=exif)
    grey = np.full((20, 40), 255, np.uint8)
    grey[:, :20] = 76
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(grey > 100).save(folder / "one_bit.png")


def test_every_kind_of_picture_comes_out_right(tmp_path):
    save_every_kind(tmp_path)
    files = find_images("Folder", tmp_path, "train")
    pictures = dict(zip([f.stem for f in files], load_images("Folder", tmp_path, "train", 20, 3), strict=True))
    assert len(pictures) == 9
    for name, picture in pictures.items():
        left, right = picture[:, 5:15, 2:8], picture[:, 5:15, 12:18]
        dark = {"grey": (76, 76, 76), "grey16": (76, 76, 76), "one_bit": (0, 0, 0)}.get(name, (255, 0, 0))
        assert abs(left.mean((1, 2)) - dark).max() <= 1, name  # 1: the palette's own rounding
        assert right.min() >= 254, name


def test_a_photograph_is_resized_and_cropped_not_squashed(tmp_path):
    photo = load_sample_images().images[0]  # 427 x 640
    Image.fromarray(photo).save(tmp_path / "photo.png")
    ours = load_images("Folder", tmp_path, "all", 64, 3)[0]
    x = torch.tensor(photo).permute(2, 0, 1)[None].float()
    small = F.interpolate(x, (64, round(64 * 640 / 427)), mode="bicubic", antialias=True)[0]
    middle = small[:, :, (small.shape[2] - 64) // 2 :][:, :, :64].clamp(0, 255)
    # another library's bicubic; the crop's edge falls up to half a pixel elsewhere, hence the mean and not the maximum
    assert (middle - torch.from_numpy(ours.copy()).float()).abs().mean() < 3
    squashed = F.interpolate(x, (64, 64), mode="bicubic", antialias=True)[0]
    assert (squashed - torch.from_numpy(ours.copy()).float()).abs().mean() > 15


def test_files_that_are_no_pictures_are_named_and_skipped(tmp_path, capsys):
    save_every_kind(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / ".DS_Store").write_bytes(b"hidden files are not even tried")
    pictures = load_images("Folder", tmp_path, "train", 8, 1)
    err = capsys.readouterr().err
    assert pictures.shape == (9, 1, 8, 8)
    assert "notes.txt" in err and "cut.png" in err and "2 of 11 files" in err and "DS_Store" not in err


def test_a_folder_without_pictures_is_an_error(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            load_images("Folder", path, "train", 8, 3)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="none of the 1 files"):
        load_images("Folder", tmp_path, "train", 8, 3)
    with pytest.raises(DataError, match="no test split"):
        load_images("Folder", tmp_path, "test", 8, 3)
    assert not list(tmp_path.glob(".cache/*"))


# --- the cache ----------------------------------------------------------------------------------------------------


def test_pictures_are_decoded_once_and_again_when_something_changed(tmp_path, capsys):
    save_every_kind(tmp_path)

    def load(size=8):
        pictures = load_images("Folder", tmp_path, "train", size, 3)
        return pictures, "from the cache" in capsys.readouterr().out

    first, cached = load()
    assert not cached
    second, cached = load()
    assert cached and isinstance(second, np.memmap) and (first == second).all()
    assert not load(16)[1] and load(8)[1]  # another size has its own
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "new.png")
    third, cached = load()
    assert not cached and len(third) == 10 and load()[1]
    Image.new("RGB", (11, 11), "green").save(tmp_path / "new.png")
    assert not load()[1]
    assert len(list((tmp_path / ".cache").glob("train_8px_3ch_*"))) == 1  # the stale ones are gone


@pytest.mark.parametrize("left", [0, 0.5, 0.999])
def test_a_cut_cache_is_noticed_and_rebuilt(tmp_path, capsys, left):
    save_every_kind(tmp_path)
    whole = np.array(load_images("Folder", tmp_path, "train", 8, 3))
    (cache,) = (tmp_path / ".cache").iterdir()
    os.truncate(cache, int(left * cache.stat().st_size))
    assert (load_images("Folder", tmp_path, "train", 8, 3) == whole).all()
    assert "cut short" in capsys.readouterr().err
    assert cache.stat().st_size == whole.nbytes


def test_where_nothing_can_be_written_the_pictures_stay_in_memory(tmp_path, capsys):
    save_every_kind(tmp_path)
    (tmp_path / ".cache").write_text("a file stands where the cache's folder would be")
    assert load_images("Folder", tmp_path, "train", 8, 3).shape == (9, 3, 8, 8)
    assert "kept in memory" in capsys.readouterr().err


# --- pixels -------------------------------------------------------------------------------------------------------


def test_pixels_there_and_back_is_the_identity_and_nothing_wraps_around():
    every = torch.arange(256, dtype=torch.uint8)
    x = normalize(every)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1 and (to_uint8(x) == every).all()
    assert to_uint8(torch.tensor([-9.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([127.4, 127.6]) / 127.5 - 1).tolist() == [127, 128]  # to the nearest


def test_grey_pictures_as_rgb_and_rgb_as_grey(tmp_path):
    train, _ = two_splits(tmp_path)
    as_rgb = load_images("Mnist", tmp_path, "train", 28, 3)
    assert (as_rgb == train[:, None].repeat(3, 1)).all()
    small = load_images("Digits", "unused", "train", 16, 1)
    assert small.shape == (1500, 1, 16, 16)
