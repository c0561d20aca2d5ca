"""What killed processes leave is swept, and what a living one holds is not."""

import errno
import os

import pytest
import torch

from rece import files

fcntl = pytest.importorskip("fcntl")


def test_leftovers_of_the_dead_are_swept_and_of_the_living_not(tmp_path):
    names = {"dead": "e.safetensors.deadbeef", "young": "e.safetensors.00000000", "held": "e.safetensors.0badf00d"}
    names["another's"] = "other.safetensors.deadbeef"
    left = {name: tmp_path / f".{file}" for name, file in names.items()}
    for name, file in left.items():
        file.write_bytes(b"half")
        if name != "young":
            os.utime(file, (0, 0))
    with open(left["held"]) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        files.write({"a": torch.ones(2)}, tmp_path / "e.safetensors", {"format": "pt"})
    assert [name for name, file in left.items() if not file.exists()] == ["dead"]


def test_a_folder_that_a_killed_process_left_is_swept(tmp_path):
    left = tmp_path / ".out.deadbeef"
    (left / "inner").mkdir(parents=True)
    os.utime(left, (0, 0))
    with files.replacing_folder(tmp_path / "out") as made:
        (made / "a.txt").write_text("a")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match="No space left on device: .*e.safetensors"),
        files.replacing(tmp_path / "e.safetensors"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_keeps_its_own_words(tmp_path):
    with pytest.raises(OSError, match="^no room left here$"), files.replacing(tmp_path / "e.safetensors"):
        raise OSError("no room left here")
