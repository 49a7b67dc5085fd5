"""Checkpoint files: which are kept, that damage is detected, and that a kill at any moment leaves a good one."""

import hashlib
import os
import pickle
import random
import signal
import zipfile

import pytest
import torch
from helpers.checkpoints import content
from helpers.systems import limited, linux

import files.atomic
import runs.checkpoint
from files.errors import CheckpointError, DamagedCheckpointError
from runs.checkpoint import load_checkpoint, save_checkpoint
from training.resume import alone_in, find_checkpoint


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 1 and 2: the path of the newer one."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "x.pt", content(step), keep=2)
    return tmp_path / "x.pt"


def test_the_newest_checkpoints_are_kept(tmp_path):
    file = tmp_path / "run" / "x.pt"
    for step in range(1, 6):
        save_checkpoint(file, content(step), keep=3)
    assert sorted(f.name for f in file.parent.iterdir()) == ["x.1.pt", "x.2.pt", "x.pt"]
    assert [load_checkpoint(file.with_name(n))["step"] for n in ("x.pt", "x.1.pt", "x.2.pt")] == [5, 4, 3]
    assert find_checkpoint(file, "auto")["step"] == 5


def test_other_programs_can_read_a_sealed_file(two):
    assert torch.equal(torch.load(two, weights_only=True)["model"]["w"], content(2)["model"]["w"])
    with zipfile.ZipFile(two) as archive:
        assert archive.testzip() is None and len(archive.comment) == 64
    archive_alone = two.read_bytes()[:-66] + b"\0\0"  # without the length and the text of the comment
    assert hashlib.sha256(archive_alone).hexdigest().encode() == two.read_bytes()[-64:]
    torch.save(torch.load(two, weights_only=True), two)  # rewritten by another program: without a seal it is accepted
    assert load_checkpoint(two)["step"] == 2


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_truncated_file_is_detected(two, part, capsys):
    whole = two.read_bytes()
    two.write_bytes(whole[: int(len(whole) * part)])
    assert find_checkpoint(two, "auto")["step"] == 1
    assert "x.pt is damaged" in capsys.readouterr().err


def test_any_flipped_bit_is_detected(two, capsys):
    whole, chance = two.read_bytes(), random.Random(0)
    ends = [*range(8), *range(8 * (len(whole) - 90), 8 * len(whole), 7)]  # the marks of the archive, and the seal
    for bit in [*ends, *(chance.randrange(8 * len(whole)) for _ in range(200))]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        two.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match="x.pt is damaged"):
            load_checkpoint(two)
    assert find_checkpoint(two, "auto")["step"] == 1 and "x.pt is damaged" in capsys.readouterr().err
    assert (two.parent / "x.pt.damaged").exists()  # renamed, or the next save would remove the good one
    save_checkpoint(two, content(3), keep=2)
    assert [load_checkpoint(two.with_name(n))["step"] for n in ("x.pt", "x.1.pt")] == [3, 1]


def test_the_pickle_of_another_program_is_one_error_without_a_warning(tmp_path, recwarn):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(print, protocol=4))
    with pytest.raises(DamagedCheckpointError, match="nothing in it was run"):
        load_checkpoint(tmp_path / "a.pt")
    assert not recwarn.list


def test_keys_newer_than_a_checkpoint_have_their_defaults(tmp_path):
    old = content(1)
    del old["recipe"]["warmup_steps"]
    save_checkpoint(tmp_path / "x.pt", old, keep=2)
    assert load_checkpoint(tmp_path / "x.pt")["recipe"]["warmup_steps"] == 0


def killed_at(phase):
    """Makes this process kill itself in one phase of a save."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def before(function, argument=None):
        def call(*args, **keywords):
            if argument is None or argument in map(str, args) or any(str(a).endswith(argument) for a in args):
                die()
            return function(*args, **keywords)

        return call

    save = torch.save
    if phase == "before the file":
        torch.save = die
    elif phase == "within the file":

        def half(what, stream):
            class Half:
                def write(self, data):
                    stream.write(bytes(data)[: len(data) // 2])
                    stream.flush()
                    die()

                def flush(self):
                    pass

            save(what, Half())

        torch.save = half
    elif phase == "before the seal":
        runs.checkpoint.seal = die
    elif phase == "after the file":
        os.replace = die
    elif phase == "between the renames":
        os.replace = before(os.replace, ".part")
    elif phase == "before the folder is synced":
        files.atomic._sync_folder = die


@linux
@pytest.mark.parametrize(
    "phase, newest",
    [
        ("before the file", 2), ("within the file", 2), ("before the seal", 2), ("after the file", 2),
        ("between the renames", 2), ("before the folder is synced", 3), ("nowhere", 3),
    ],
)  # fmt: skip
def test_a_kill_in_any_phase_of_a_save_leaves_a_good_checkpoint(two, phase, newest):
    child = os.fork()
    if child == 0:
        try:
            killed_at(phase)
            save_checkpoint(two, content(3), keep=2)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == (0 if phase == "nowhere" else signal.SIGKILL)
    for part in two.parent.glob(".*.part"):
        os.utime(part, (0, 0))  # it was left long ago
    with alone_in(two.parent):  # as the next training does
        found = find_checkpoint(two, "auto")
    assert found["step"] == newest and torch.equal(found["model"]["w"], content(newest)["model"]["w"])
    assert not list(two.parent.glob("*.part"))
    save_checkpoint(two, content(4), keep=2)
    assert load_checkpoint(two)["step"] == 4


@linux
def test_without_space_the_older_checkpoints_stay_and_the_needed_space_is_reported(two):
    before = {file: file.read_bytes() for file in two.parent.iterdir()}
    says = r"x.pt was not written \(.*it needs 7.6 MiB, and .* MiB are free"
    with pytest.raises(CheckpointError, match=says), limited("RLIMIT_FSIZE", 1 << 20):
        save_checkpoint(two, content(3, numbers=2_000_000), keep=2)
    assert {file: file.read_bytes() for file in two.parent.iterdir()} == before


def test_a_failed_write_leaves_the_older_checkpoints(two):
    with pytest.raises(TypeError):
        save_checkpoint(two, content(3) | {"extra": (i for i in ())}, keep=2)  # cannot be pickled
    assert sorted(f.name for f in two.parent.iterdir()) == ["x.1.pt", "x.pt"] and load_checkpoint(two)["step"] == 2
