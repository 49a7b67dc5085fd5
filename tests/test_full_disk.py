"""Full disks, and several runs at once in one folder: what is written exists completely or not at all."""

import json
import re
from datetime import datetime

import pytest
from helpers.pictures import sampling
from helpers.scripts import forked, on_a_full_disk, refused, train
from PIL import Image

import test_solver
from utils.pictures import is_complete_png


def complete(folder):
    """Asserts that every file below is what its name says; returns how many there are."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        assert file.suffix != ".png" or is_complete_png(file)
        assert file.suffix != ".json" or json.loads(file.read_text())
        assert file.suffix not in (".csv", ".gif", ".part"), file
    return len(files)


def test_four_runs_in_one_second_leave_the_pictures_of_all(trained, tmp_path, monkeypatch):
    class SameSecond:
        now = staticmethod(lambda: datetime(2030, 1, 1))

    monkeypatch.setattr(test_solver, "datetime", SameSecond)
    first, *others = [forked(sampling(trained, tmp_path, "random_gen", "--sample_num", n)) for n in (1, 4, 9, 16)]
    assert [run().returncode for run in (first, *others)] == [0, 0, 0, 0]
    drawn = {kind: sorted(tmp_path.glob(f"20300101000000_seed0*_digits_DDIM_2_0p0_{kind}.png")) for kind in
             ("final", "progress")}  # fmt: skip
    assert [len(files) for files in drawn.values()] == [4, 4]
    assert len({Image.open(file).size for file in drawn["final"]}) == 4  # of 1, 4, 9 and 16 samples
    numbers = [{re.match(r"\d+_seed0(-\d)?_", file.name)[0] for file in files} for files in drawn.values()]
    assert numbers[0] == numbers[1]  # the files of one run have one beginning
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize(
    "mode, args, limit, file",
    [
        ("random_gen", (), 400, "progress.png"),
        ("random_gen", ("--animate", "gif"), 400, "progress.png"),
        ("compare", (), 400, "compare.png"),
        ("interpolate", ("--sample_num", 4), 400, "interpolate.png"),
        ("evaluate", ("--sample_num", 20), 400, "evaluate.json"),
        ("random_gen", ("--sample_dir", "D"), 100, "samples.json"),
    ],
)
def test_a_full_disk_leaves_no_half_written_file(trained, tmp_path, mode, args, limit, file):
    args = tuple(tmp_path / "samples" if arg == "D" else arg for arg in args)
    run = sampling(trained, tmp_path / "results", mode, *args)
    refused(on_a_full_disk(run, limit), 1, file, "was not written (File too large): it needs", "are free")
    assert complete(tmp_path) == 0
    again = run()  # nothing of the failed run is in its way
    assert again.returncode == 0, again.stderr


def test_a_full_disk_during_a_training_leaves_no_half_written_file(tmp_path):
    for limit, file in ((400, "recipe.yaml"), (40_000, "digits.pt")):
        refused(on_a_full_disk(lambda: train(tmp_path), limit), 1, file, "was not written (File too large): it needs")
        assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.part"))
    assert train(tmp_path).returncode == 0
    limit = (tmp_path / "digits" / "preview_00000006.png").stat().st_size - 1
    before = {file.name: file.read_bytes() for file in (tmp_path / "digits").glob("*.pt")}
    (tmp_path / "digits" / "preview_00000006.png").write_bytes(b"cut short by an earlier version")
    refused(on_a_full_disk(lambda: train(tmp_path), limit), 1, "preview_00000006.png", "was not written")
    assert {file.name: file.read_bytes() for file in (tmp_path / "digits").glob("*.pt")} == before
    assert train(tmp_path).returncode == 0 and is_complete_png(tmp_path / "digits" / "preview_00000006.png")
