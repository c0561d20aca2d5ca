"""Images on disk: what is written is read, in the table's order, and every damage is found and named."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rece import writing
from rece.plan import check
from rece.shards import Shards

NOTE = {"batch_size": 2, "seconds": 0.1, "drawn_with": "nothing"}


def table(n=7, **columns):
    return check(pd.DataFrame({"prompt": [f"a {i}" for i in range(n)], "seed": range(n), **columns}))


def picture(row, width=16, height=8):
    return np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fill(shards, only=None):
    for shard, rows in enumerate(shards.shards):
        if only is None or shard in only:
            for row in rows:
                size = [int(shards.table[side][row]) for side in ("width", "height")]
                writing.keep(shards, shard, [row], picture(row, *size)[None], NOTE)
            writing.finish(shards, shard, writing.kept(shards, shard))
    return shards


@pytest.fixture
def made(tmp_path):
    """Seven images in three shards; two of them are wider, and one of these has a guidance of its own."""
    width = [16, 16, 24, 16, 16, 24, 16]
    rows = table(width=width, height=[8] * 7, guidance=[7.5] * 5 + [3.0, 7.5], label=list("abcdefg"))
    return fill(writing.begin(tmp_path / "images", rows, {"shard_size": 3, "steps": 2}))


def test_images_come_back_in_the_tables_order_whatever_shard_they_lie_in(made):
    shards = Shards(made.folder)
    assert shards.shards == [[0, 1, 3], [4, 6, 2], [5]] and len(shards) == 7 and shards.missing() == []
    seen = []
    for rows, images in shards.batches(2):
        assert images.dtype == np.uint8 and len(rows) == len(images) <= 2
        for row, image in zip(rows.index, images, strict=True):
            np.testing.assert_array_equal(image, picture(row, rows["width"][row]))
            assert rows["label"][row] == "abcdefg"[row]
            seen.append(row)
    assert seen == list(range(7))
    np.testing.assert_array_equal(shards.images([6, 0, 6]), np.stack([picture(6), picture(0), picture(6)]))
    shards.verify()


def test_a_shard_is_a_plain_tar_with_the_same_bytes_each_time(made, tmp_path):
    with tarfile.open(made.path(1)) as tar:
        assert tar.getnames() == ["4.png", "6.png", "2.png"]
        image = Image.open(io.BytesIO(tar.extractfile("2.png").read()))
        np.testing.assert_array_equal(np.asarray(image), picture(2, 24))
    again = fill(writing.begin(tmp_path / "again", made.table, {"shard_size": 3, "steps": 2}))
    for shard in range(3):
        assert again.path(shard).read_bytes() == made.path(shard).read_bytes()
        assert not made.path(shard, "parts").exists()
    assert {path.name for path in made.folder.iterdir()} == {
        "plan.json", *(f"shard-0000{n}.{ending}" for n in range(3) for ending in ("tar", "jsonl"))
    }  # fmt: skip


def test_the_table_and_its_other_columns_survive(tmp_path):
    rows = table(
        3, seed=[0, 4290749014, 2**64 - 1], case=["a_1", "b-2", "3"], label=["x", None, "ü\u2028"], rate=[1, 2.5, 3]
    )
    read = writing.begin(tmp_path, rows, {"shard_size": 3}).table
    pd.testing.assert_frame_equal(read, rows, check_dtype=False)
    assert [type(value) is not float for value in read["seed"]] == [True] * 3 and read["width"].isna().all()


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [512, 700, 0, -1])
def test_one_wrong_bit_in_a_tar_is_found(made, place):
    flip(made.path(1), place)
    shards = Shards(made.folder)
    with pytest.raises(ValueError, match="1 of 3 shards .*shard-00001.tar is damaged .*delete it and draw again"):
        shards.verify()
    assert list(shards.damaged()) == [1] and shards.damaged([0, 2]) == {}
    shards.images([0, 3])
    if place in (512, 700):
        with pytest.raises(ValueError, match="shard-00001.tar is damaged .4.png has another sha256"):
            shards.images([6, 4])


def test_missing_and_cut_files_are_named_before_anything_is_read(made):
    cut = made.path(2)
    cut.write_bytes(cut.read_bytes()[:-600])
    with pytest.raises(ValueError, match="shard-00002.tar is damaged .*bytes"):
        next(Shards(made.folder).batches())
    made.path(0, "jsonl").unlink()
    shards = Shards(made.folder)
    assert shards.missing() == [0]
    with pytest.raises(FileNotFoundError, match="shard-00000.jsonl is missing: draw again"):
        next(shards.batches())
    with pytest.raises(ValueError, match="2 of 3 shards .*shard-00000.tar is missing.*shard-00002.tar is damaged"):
        shards.verify()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda text: text[:-30], "jsonl is damaged"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "2 lines for 3 images"),
        (lambda text: "", "jsonl is damaged"),
        (lambda text: text.replace('"case": "1"', '"case": "9"'), "it lists other cases"),
        (lambda text: text.replace('"plan": "', '"plan": "0'), "belongs to another plan"),
    ],
)
def test_a_damaged_manifest_is_found(made, spoil, message):
    path = made.path(0, "jsonl")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=message):
        Shards(made.folder).images([1])
    assert list(Shards(made.folder).damaged()) == [0]


def test_a_damaged_part_is_thrown_away_and_the_others_are_kept(tmp_path):
    shards = writing.begin(tmp_path, table(3, width=[16] * 3, height=[8] * 3), {"shard_size": 3})
    for row in range(3):
        writing.keep(shards, 0, [row], picture(row)[None], NOTE)
    first, second, third = sorted(shards.path(0, "parts").iterdir())
    flip(second, 1600)
    third.write_bytes(third.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged .*: its images are drawn again"):
        assert list(writing.kept(shards, 0)) == [0]
    assert not second.exists() and not third.exists() and first.exists()


def test_a_part_or_shard_of_another_plan_is_refused(tmp_path):
    rows = table(3, width=[16] * 3, height=[8] * 3)
    old = writing.begin(tmp_path, rows, {"shard_size": 2, "steps": 1})
    fill(old, only=[0])
    writing.keep(old, 1, [2], picture(2)[None], NOTE)
    (tmp_path / "plan.json").unlink()
    new = writing.begin(tmp_path, rows, {"shard_size": 2, "steps": 2})
    with pytest.raises(ValueError, match="belongs to another plan"):
        writing.kept(new, 1)
    with pytest.raises(ValueError, match="belongs to another plan"):
        new.images([0])


@pytest.mark.parametrize(
    "settings, columns, message",
    [
        ({"steps": 3}, {}, "steps is 2 there, but 3 now"),
        ({"shard_size": 4}, {}, "shard_size is 3 there, but 4 now"),
        ({"identity": {"model": "other"}}, {}, "identity.model is 'sd' there, but 'other' now"),
        ({}, {"seed": [0, 1, 9]}, "seed of row 2 is 2 there, but 9 now"),
        ({}, {"guidance": [1.0, None, None]}, "guidance of row 0 is 7.5 there, but 1.0 now"),
        ({}, {"width": [None, 8, None], "height": [None, 8, None]}, "width of row 1 is None there, but 8 now"),
        ({}, {"prompt": ["a 0", "a", "a 2"]}, "prompt of row 1 is 'a 1' there, but 'a' now"),
        ({}, {"case": [0, 1, 3]}, "case of row 2 is '2' there, but '3' now"),
    ],
)
def test_another_plan_is_refused_in_words(tmp_path, settings, columns, message):
    first = {"shard_size": 3, "steps": 2, "identity": {"model": "sd"}}
    writing.begin(tmp_path, table(3), first)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(ValueError, match=f"holds another plan .{message}.: use another folder"):
        writing.begin(tmp_path, table(3, **columns), first | settings)
    with pytest.raises(ValueError, match="3 rows there, but 2 now"):
        writing.begin(tmp_path, table(2), first)
    assert (tmp_path / "plan.json").read_bytes() == before


def test_the_last_calls_other_columns_are_kept(tmp_path):
    for label in "ab":
        assert (
            writing.begin(tmp_path, table(2, label=[label] * 2), {"shard_size": 3}).table["label"].tolist()
            == [label] * 2
        )
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_what_a_killed_run_left_of_a_plan_is_removed_and_what_is_being_written_is_not(tmp_path):
    old, new = tmp_path / ".plan.json.old", tmp_path / ".plan.json.new"
    for left, age in ((old, 2 * writing.LEFTOVER), (new, 0)):
        left.write_text("{")
        os.utime(left, (time.time() - age,) * 2)
    writing.begin(tmp_path, table(2), {"shard_size": 3})
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", new.name}


def test_a_shard_that_another_process_has_finished_meanwhile_is_left_alone(made):
    before = {path: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(FileNotFoundError):
        writing.finish(made, 0, {})
    assert {path: path.read_bytes() for path in made.folder.iterdir()} == before


def test_a_folder_without_a_whole_plan(tmp_path, made):
    with pytest.raises(FileNotFoundError, match="plan.json is missing"):
        Shards(tmp_path / "none")
    path = made.folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["table"]["seed"][3] += 1
    for text in (path.read_text()[:-9], "{}", json.dumps(plan)):
        path.write_text(text)
        with pytest.raises(ValueError, match="plan.json is damaged"):
            Shards(made.folder)


def test_bad_input(made):
    with pytest.raises(IndexError, match="rows holds 7, but the rows are 0 to 6"):
        made.images([0, 7])
    with pytest.raises(ValueError, match="images of one size, not of 2 sizes"):
        made.images([0, 2])
    with pytest.raises(ValueError, match="batch_size"):
        next(made.batches(0))
