"""How picture files are read: transparency, 16 bits, colour profiles, splits; what is said of them; caches."""

import re
import struct
import zlib

import numpy as np
import pytest
from helpers.scripts import train
from PIL import Image

from datasets import DataError, Reading, find_images, load_images, load_labelled
from datasets.folder import open_picture


def png(depth, colour, values, clear):
    """A PNG of one row, written as its specification says. values, clear: a number each, or three with colour 2."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = "".join(f"{value:0{depth}b}" for value in np.ravel(values))
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = struct.pack(">IIBBBBB", len(values), 1, depth, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(f">{np.size(clear)}H", *np.ravel(clear)))
    parts += (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    "depth, colour, values, clear, grey",
    [
        (1, 0, [0, 1, 0], 1, [0, None, 0]),
        (2, 0, [0, 1, 2, 3], 1, [0, None, 170, 255]),
        (4, 0, [0, 5, 10, 15], 10, [0, 85, None, 255]),
        (8, 0, [0, 5, 10], 0, [None, 5, 10]),
        (16, 0, [0, 257 * 7, 257 * 9 + 1, 65535], 257 * 9 + 1, [0, 7, None, 255]),
        (16, 2, [[0] * 3, [40000, 500, 1], [65535] * 3], [40000, 500, 1], [0, None, 255]),
    ],
)
def test_a_transparent_colour_of_any_depth_gets_the_background(tmp_path, depth, colour, values, clear, grey):
    (tmp_path / "a.png").write_bytes(png(depth, colour, values, clear))
    pixels = np.asarray(open_picture(tmp_path / "a.png", Reading("#123456")))[0]
    assert pixels.tolist() == [[0x12, 0x34, 0x56] if value is None else [value] * 3 for value in grey]


def test_twelve_bits_fill_the_range(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(open_picture(tmp_path / name, Reading(bits=12)))[..., 0]
        assert (pixels == (values / 4095 * 255 + 0.5).astype(int)).all()


# --- colour profiles ---

ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])  # to D50 XYZ
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 563 / 256


def adobe_rgb():
    """The profile, as the ICC's specification describes it: three primaries and a gamma."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    white = (0.9642, 1, 0.8249)
    tags = {b"wtpt": xyz(white), b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"A\0" + bytes(80)}
    tags |= {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), ADOBE.T, strict=True)}
    tags |= {name + b"TRC": b"curv\0\0\0\0" + struct.pack(">IHH", 1, 563, 0) for name in (b"r", b"g", b"b")}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI", start + len(body), b"test", 0x2100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return (head.ljust(68, b"\0") + xyz(white)[8:]).ljust(128, b"\0") + table + body


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    colours = np.array([[150, 120, 90], [100, 130, 110], [128, 128, 128], [200, 180, 190]], np.uint8)
    linear = (colours / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ ADOBE).T
    right = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for profile, want in ((adobe_rgb(), right), (adobe_rgb()[:200], colours), (b"broken", colours), (None, colours)):
        Image.fromarray(colours[None]).save(tmp_path / "a.png", icc_profile=profile)
        alpha = np.dstack([colours[None], np.full((1, 4, 1), 255, np.uint8)])
        Image.fromarray(alpha).save(tmp_path / "b.png", icc_profile=profile)
        for name in ("a.png", "b.png"):
            got = np.asarray(open_picture(tmp_path / name))[0]
            assert abs(got - want).max() <= (1 if want is right else 0)  # 1: rounding in 8 bits
    assert abs(right - colours).max() > 5


# --- splits and links ---


def save(file, seed, size=(9, 9, 3)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8)).save(file)


def test_folders_named_like_splits_are_splits(tmp_path):
    names = ["Train/cat/a", "Train/dog/b", "valid/dog/c", "TEST/dog/d", "e"]
    for seed, name in enumerate(names):
        save(tmp_path / f"{name}.png", seed)

    def load(split):
        _, labels, classes = load_labelled("Folder", tmp_path, split, 8, 3, ["cat", "dog"])
        found = find_images("Folder", tmp_path, split)
        return [f"{file.stem}{label}" for file, label in zip(found, labels, strict=True)]

    assert load("train") == ["a0", "b1", "c1"] and load("test") == ["d1"]
    assert load("all") == ["d1", "a0", "b1", "e2", "c1"]
    save(tmp_path / "vehicles" / "train" / "a.png", 0)
    save(tmp_path / "vehicles" / "car" / "a.png", 1)
    assert load_labelled("Folder", tmp_path / "vehicles", "train", 8, 3)[2] == ["car", "train"]
    with pytest.raises(DataError, match="no test split"):
        find_images("Folder", tmp_path / "vehicles", "test")


def test_what_is_beside_folders_for_splits_is_trained_on_only_where_there_is_no_train(tmp_path, capsys):
    names = ("lone/a", "lone/b", "lone/test/c", "more/train/d", "more/val/e", "more/f", "only/test/g")
    for seed, name in enumerate(names):
        save(tmp_path / f"{name}.png", seed)

    def found(folder, split):
        return sorted(file.stem for file in find_images("Folder", tmp_path / folder, split))

    assert found("lone", "train") == ["a", "b"] and found("lone", "test") == ["c"]
    assert found("lone", "all") == ["a", "b", "c"] and not capsys.readouterr().err
    assert found("more", "train") == ["d", "e"]
    assert "folders for splits; what is beside them is not used: f.png" in capsys.readouterr().err
    with pytest.raises(DataError, match="no pictures"):
        found("only", "train")


def test_a_cache_inside_the_data_is_read_again(tmp_path, capsys):
    for seed, name in enumerate(("a", "test/b")):
        save(tmp_path / f"{name}.png", seed)
    for made in ("decoding 1", "1 pictures from the cache"):
        load_images("Folder", tmp_path, "train", 8, 3, reading=Reading(cache_dir=str(tmp_path / "cache")))
        printed = capsys.readouterr()
        assert made in printed.out and "not used" not in printed.err


def test_a_file_that_is_linked_counts_once(tmp_path):
    save(tmp_path / "set" / "red" / "1.png", 0)
    save(tmp_path / "elsewhere.png", 1)
    for name, target in (
        ("all/1.png", "set/red/1.png"),
        ("red/2.png", "elsewhere.png"),
        ("red/3.png", "elsewhere.png"),
    ):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    found = find_images("Folder", tmp_path / "set", "train")
    assert [file.relative_to(tmp_path / "set").parts[0] for file in found] == ["red", "red"]


# --- what is said ---


@pytest.mark.parametrize(
    "kind, says",
    [
        ("twelve bits", "20 pictures: values from 0 to 16 of 255.*; few levels: .* set bits=12; all are grey"),
        ("white on clear", "values from 255 to 255 of 255, mean 255; 100% are of one colour: .* background=black"),
        ("pages", "100% are of one colour.*; 20 files have several pages, .*; 19 are copies"),
        (
            "grey",
            "^20 pictures: values from 0 to 255 of 255, mean 12[78.]+; all are grey, .* image_channel=1 is enough$",
        ),
        ("colour", None),
    ],
)
def test_a_line_says_that_pictures_hold_next_to_nothing(tmp_path, capsys, kind, says):
    (tmp_path / "p").mkdir()
    rng, black = np.random.default_rng(0), Image.new("L", (24, 24))
    for i in range(20):
        noise = rng.integers(0, 256, (24, 24, 4), np.uint8)
        white = np.dstack([np.full((24, 24, 3), 255, np.uint8), noise[..., 3]])
        twelve_bits = rng.integers(0, 4096, (24, 24), np.uint16)
        pixels = {"twelve bits": twelve_bits, "white on clear": white, "colour": noise[..., :3]}.get(
            kind, noise[..., 0]
        )
        if kind == "pages":
            black.save(tmp_path / "p" / f"{i}.tif", save_all=True, append_images=[Image.fromarray(pixels)])
        else:
            Image.fromarray(pixels).save(tmp_path / "p" / f"{i}.png")
    load_images("Folder", tmp_path / "p", "train", 24, 3)
    out, err = capsys.readouterr()
    lines = [line for line in re.split("[\r\n]+", err) if "values from" in line]
    assert len(lines) == (says is not None) and ("values from 0 to 255 of 255" in out) == (says is None)
    assert says is None or re.search(says, lines[0].strip()), lines
    if kind == "twelve bits":
        (tmp_path / "c.yaml").write_text(f"{{Train_Setting: {{}}, Train_Data: {{A: {{data_path: {tmp_path / 'p'}}}}}}}")
        for bits, few in ((16, True), (12, False)):
            settings = {"bits": bits, "image_size": 24, "batch_size": 4}
            dry = train(tmp_path / "r", "--config", tmp_path / "c.yaml", "--dry_run", data_name="A", settings=settings)
            assert dry.returncode == 0 and ("few levels" in dry.stderr) is few, dry.stderr


def test_captions_are_counted_and_pictures_that_cannot_be_read_get_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are refused
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
        save(tmp_path / f"{i}.bmp", i, (15, 15, 3))
        (tmp_path / f"{i}.txt").write_text("a caption")
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert len(load_images("Folder", tmp_path, "train", 8, 3)) == 9
    err = capsys.readouterr().err
    assert "10 files were not opened: 9 .txt, 1 .heic (save HEIC as JPEG or PNG)" in err
    assert err.count("(225 pixels) exceeds limit of 200 pixels: save it smaller") == 5
    assert "9 of 18 files are not pictures and were skipped: 9 .bmp" in err


# --- where decoded pictures are kept ---


def test_each_reading_and_each_folder_has_its_own_cache(tmp_path, capsys):
    for name in "ab":
        save(tmp_path / name / "1.png", 0, (9, 9, 4))

    def load(name, **reading):
        pictures = load_images("Folder", tmp_path / name, "train", 8, 3, reading=Reading(**reading))
        return np.array(pictures), "from the cache" in capsys.readouterr().out

    white, black = load("a")[0], load("a", background="black")[0]
    assert (white > black).any() and all(load("a", background=colour)[1] for colour in ("white", "black"))
    assert not load("a", bits=12)[1]
    for _ in range(2):  # in one cache_dir, neither removes the other's as outdated
        cached = [load(name, cache_dir=str(tmp_path / "c"))[1] for name in "ab"]
    assert cached == [True, True] and not (tmp_path / "b" / ".cache").exists()


def test_a_folder_that_is_read_only_is_decoded_into_the_users_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    save(tmp_path / "set" / "1.png", 0)
    (tmp_path / "set" / ".cache").write_text("no folder can have this name")  # root may write everywhere
    first = load_images("Folder", tmp_path / "set", "train", 8, 3)
    out, err = capsys.readouterr()
    assert f"into {tmp_path / 'user' / 'diffusion-pytorch'}" in out and "MiB" in out and "no cache in" in err
    assert (load_images("Folder", tmp_path / "set", "train", 8, 3) == first).all()
    assert "1 pictures from the cache" in capsys.readouterr().out
