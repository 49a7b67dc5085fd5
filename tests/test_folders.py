"""Folders of pictures: every kind of file, the cache of decoded pictures, and pixels."""

import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.systems import limited, linux
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets import DataError, find_images, load_images, normalize, to_uint8


def save_every_kind(folder):
    """A picture of 40x20 pixels in every kind of file: the left half red (dark if grey), the right half white."""
    rgb = Image.new("RGB", (40, 20), "white")
    rgb.paste((255, 0, 0), (0, 0, 20, 20))
    rgb.save(folder / "rgb.png")
    rgb.quantize(4).save(folder / "palette.png")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgba = rgb.convert("RGBA")
    rgba.paste((0, 0, 0, 0), (20, 0, 40, 20))  # transparent black on the right: white on white
    rgba.save(folder / "rgba.png")
    rgba.quantize(4).save(folder / "transparent_palette.png")
    turned = rgb.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    turned.save(folder / "turned.png", exif=exif)
    grey = np.full((20, 40), 255, np.uint8)
    grey[:, :20] = 76
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(grey > 100).save(folder / "one_bit.png")


def test_every_kind_of_picture_is_read_correctly(tmp_path):
    save_every_kind(tmp_path)
    files = find_images("Folder", tmp_path, "train")
    pictures = dict(zip([f.stem for f in files], load_images("Folder", tmp_path, "train", 20, 3), strict=True))
    assert len(pictures) == 9
    for name, picture in pictures.items():
        left, right = picture[:, 5:15, 2:8], picture[:, 5:15, 12:18]
        dark = {"grey": (76, 76, 76), "grey16": (76, 76, 76), "one_bit": (0, 0, 0)}.get(name, (255, 0, 0))
        assert abs(left.mean((1, 2)) - dark).max() <= 1, name  # 1: the rounding of the palette
        assert right.min() >= 254, name


def test_a_photograph_is_resized_and_cropped_without_distortion(tmp_path):
    photo = load_sample_images().images[0]  # 427 x 640
    Image.fromarray(photo).save(tmp_path / "photo.png")
    ours = load_images("Folder", tmp_path, "all", 64, 3)[0]
    x = torch.tensor(photo).permute(2, 0, 1)[None].float()
    small = F.interpolate(x, (64, round(64 * 640 / 427)), mode="bicubic", antialias=True)[0]
    middle = small[:, :, (small.shape[2] - 64) // 2 :][:, :, :64].clamp(0, 255)
    # PyTorch's bicubic; its crop may be shifted by half a pixel, so the mean is compared and not the maximum
    assert (middle - torch.from_numpy(ours.copy()).float()).abs().mean() < 3
    squashed = F.interpolate(x, (64, 64), mode="bicubic", antialias=True)[0]
    assert (squashed - torch.from_numpy(ours.copy()).float()).abs().mean() > 15


def test_files_that_are_not_pictures_are_reported_and_skipped(tmp_path, capsys):
    save_every_kind(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / ".DS_Store").write_bytes(b"hidden files are not read")
    pictures = load_images("Folder", tmp_path, "train", 8, 1)
    err = capsys.readouterr().err
    assert pictures.shape == (9, 1, 8, 8)
    assert "1 .txt" in err and "cut.png" in err and "1 of 10 files" in err and "DS_Store" not in err


@linux
def test_links_are_followed_and_broken_ones_reported(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "set").mkdir()
    save_every_kind(tmp_path / "real")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    (tmp_path / "set" / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "real" / "rgb.png").read_bytes())
    assert len(load_images("Folder", tmp_path / "set", "train", 8, 3)) == 10
    err = capsys.readouterr().err
    assert "gone.png: a broken link" in err and "pipe.png" in err


@linux
def test_a_folder_that_is_linked_several_times_counts_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set" / "sub").mkdir(parents=True)
    save_every_kind(tmp_path / "elsewhere")
    for link in ("one", "two", "sub/three"):
        (tmp_path / "set" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to("loop")
    found = find_images("Folder", tmp_path / "set", "train")
    assert len(found) == 9 and {file.parent.name for file in found} == {"one"}


def test_an_unreadable_subfolder_is_refused_and_not_left_out(tmp_path, monkeypatch):
    save_every_kind(tmp_path)
    (tmp_path / "locked").mkdir()

    def scandir(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        load_images("Folder", tmp_path, "train", 8, 3)


def test_no_program_is_run_to_decode_a_picture(tmp_path, monkeypatch, capsys):
    save_every_kind(tmp_path)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for name in ("program.jpg", "program.eps"):
        (tmp_path / name).write_text(text)

    def run(*args, **_):
        raise AssertionError(f"{args} was run")

    monkeypatch.setattr("subprocess.Popen", run)
    assert len(load_images("Folder", tmp_path, "train", 8, 3)) == 9
    assert capsys.readouterr().err.count("cannot identify image file") == 2


def test_32_bit_integers_are_skipped_because_their_range_is_unknown(tmp_path):
    Image.fromarray(np.full((9, 9), 200, np.int32)).save(tmp_path / "int32.tif")
    with pytest.raises(DataError, match="none of the 1 files"):
        load_images("Folder", tmp_path, "train", 8, 3)


def test_a_folder_without_pictures_is_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            load_images("Folder", path, "train", 8, 3)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="no pictures"):
        load_images("Folder", tmp_path, "train", 8, 3)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match="none of the 1 files"):
        load_images("Folder", tmp_path, "train", 8, 3)
    with pytest.raises(DataError, match="no test split"):
        load_images("Folder", tmp_path, "test", 8, 3)
    assert not (tmp_path / ".cache").exists()


# --- the cache ---


def test_pictures_are_decoded_again_only_if_a_file_has_changed(tmp_path, capsys):
    save_every_kind(tmp_path)

    def load(size=8):
        pictures = load_images("Folder", tmp_path, "train", size, 3)
        assert isinstance(pictures, np.memmap)
        return np.array(pictures), "from the cache" in capsys.readouterr().out  # Windows keeps what is mapped

    first, cached = load()
    assert not cached
    second, cached = load()
    assert cached and (first == second).all()
    assert not load(16)[1] and load(8)[1]  # each size has its own cache
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "new.png")
    third, cached = load()
    assert not cached and len(third) == 10 and load()[1]
    Image.new("RGB", (11, 11), "green").save(tmp_path / "new.png")
    assert not load()[1]
    assert len(list((tmp_path / ".cache").glob("train_8px_3ch_*"))) == 1  # the outdated ones are removed


def test_files_with_odd_names_in_the_cache_are_left_alone(tmp_path):
    save_every_kind(tmp_path)
    load_images("Folder", tmp_path, "train", 8, 3)
    (cache,) = (tmp_path / ".cache").iterdir()
    names = [cache.name.replace(".u8", end) for end in ("_\u00b25.u8", "_9x.u8", ".txt")]
    for name in names:
        (tmp_path / ".cache" / name).write_text("not ours")
    Image.new("RGB", (8, 8)).save(tmp_path / "one_more.png")
    assert len(load_images("Folder", tmp_path, "train", 8, 3)) == 10
    assert not cache.exists() and all((tmp_path / ".cache" / name).exists() for name in names)


@pytest.mark.parametrize("left", [0, 0.5, 0.999])
def test_a_truncated_cache_is_rebuilt(tmp_path, capsys, left):
    save_every_kind(tmp_path)
    whole = np.array(load_images("Folder", tmp_path, "train", 8, 3))
    (cache,) = (tmp_path / ".cache").iterdir()
    os.truncate(cache, int(left * cache.stat().st_size))
    assert (load_images("Folder", tmp_path, "train", 8, 3) == whole).all()
    assert "cut short" in capsys.readouterr().err
    assert cache.stat().st_size == whole.nbytes + 9 * 8  # the number of the file of each


def test_pictures_are_kept_in_memory_if_the_cache_cannot_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    save_every_kind(tmp_path)
    (tmp_path / ".cache").write_text("a file with the name of the cache folder")
    assert load_images("Folder", tmp_path, "train", 8, 3).shape == (9, 3, 8, 8)
    assert "kept in memory" in capsys.readouterr().err


@linux
def test_a_cache_that_does_not_fit_on_the_disk_is_refused_and_removed(tmp_path):
    save_every_kind(tmp_path)
    says = r"\.u8 was not written .* 1\.7 MiB"  # 9 x 3 x 256 x 256 bytes are 1.7 MiB
    with pytest.raises(DataError, match=says), limited("RLIMIT_FSIZE", 1 << 20):
        load_images("Folder", tmp_path, "train", 256, 3)
    assert not list((tmp_path / ".cache").iterdir())


# --- pixels ---


def test_normalized_pixels_convert_back_exactly_and_never_wrap_around():
    every = torch.arange(256, dtype=torch.uint8)
    x = normalize(every)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1 and (to_uint8(x) == every).all()
    assert to_uint8(torch.tensor([-9.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([127.4, 127.6]) / 127.5 - 1).tolist() == [127, 128]  # to the nearest
