"""Prompt files: defects mended and told, bad files refused, and files in the form of the published ones."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from project import PAPER, ROOT

from rece.sharing import prompts

IMPORTS = PAPER / "prompts"
COLUMNS = ["case", "prompt", "seed", "guidance", "width", "height", "label"]
SOURCE = {"url": "https://github.com/CharlesGong12/RECE", "rev": "403a67f2"}
ROWS = {
    "artists1734_prompts.csv": 8670,
    "big_artist_prompts.csv": 100,
    "coco_30k.csv": 30000,
    "coco_30k_val.csv": 3000,
    "i2p.csv": 4703,
    "imagenette.csv": 5000,
    "nudity-ring-a-bell.csv": 79,
    "nudity.csv": 142,
    "robust_imagenette.csv": 100,
    "short_niche_art_prompts.csv": 100,
    "validation_big_artists.csv": 10,
    "validation_imagenet_prompts.csv": 100,
    "validation_inappropriate.csv": 110,
    "validation_niche_artists.csv": 9,
    "vangogh-ring-a-bell.csv": 50,
}
FORMS = ROOT / "tests/data/prompts"  # a few rows of our own in the form of each published file
PAIRS = ["nudity-ring-a-bell.csv", "vangogh-ring-a-bell.csv"]


@pytest.fixture
def file(tmp_path):
    """Write a prompt file, from text or from bytes."""

    def write(content):
        path = tmp_path / "some.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_columns_have_one_set_of_names(file):
    header = "prompt,extra,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,coco_id"
    header += ",case_number"
    rows = ['a cat,x,"hate, violence",4290749014,7,512,384,000042,3', f" a dog \t,y,hate,{2**63 - 1},,,,7,1"]
    table, repairs = prompts.read(file("\n".join([header, *rows])))
    assert repairs == []
    assert list(table) == [*COLUMNS, "extra", "coco_id"]
    assert table["prompt"].tolist() == ["a cat", " a dog \t"]
    assert table["case"].tolist() == [3, 1]
    assert table["seed"].tolist() == [4290749014, 2**63 - 1] and table["seed"].dtype == np.int64
    assert table["guidance"][0] == 7.0 and np.isnan(table["guidance"][1])
    assert table["width"][0] == 512 and table["height"][0] == 384
    assert table["width"][1] is pd.NA and str(table["width"].dtype) == "Int64"
    assert table["label"].tolist() == ["hate, violence", "hate"]
    assert table["extra"].tolist() == ["x", "y"]
    assert table["coco_id"].tolist() == [42, 7]


def test_what_a_file_lacks_is_na_and_a_written_table_reads_the_same(file, tmp_path):
    table, repairs = prompts.read(file("prompt,evaluation_seed\nNone,1\nnan,2.0\n"))
    assert list(table) == COLUMNS
    assert table["prompt"].tolist() == ["None", "nan"]
    assert table["seed"].tolist() == [1, 2]
    assert table["case"].tolist() == [0, 1]
    assert repairs == ["case numbers missing, rows numbered from 0: 2, the first on line 2"]
    assert table["guidance"].isna().all() and table["width"].isna().all() and table["height"].isna().all()
    assert table["label"].tolist() == ["", ""]

    table.to_csv(tmp_path / "again.csv", index=False)
    again, repairs = prompts.read(tmp_path / "again.csv")
    assert repairs == []
    pd.testing.assert_frame_equal(again, table)


def test_commas_without_quotes_are_put_together_again(file):
    table, repairs = prompts.read(
        file(
            "case_number,prompt,evaluation_seed,class\n"
            '0,"quoted, once",4,church\n'
            "1,In a cafe, the tench,5,tench\n"
            "2,one, two,  three,6,gas pump\n"
        )
    )
    assert table["prompt"].tolist() == ["quoted, once", "In a cafe, the tench", "one, two,  three"]
    assert table["seed"].tolist() == [4, 5, 6]
    assert table["label"].tolist() == ["church", "tench", "gas pump"]
    assert repairs == ["commas without quotes in prompt, put together again: 2, the first on line 3"]


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_index_columns_are_dropped_wherever_they_stand(file, name, where):
    lines = [["case_number", "prompt", "evaluation_seed"], ["5", "a cat", "1"], ["6", "a dog", "2"]]
    for cells, cell in zip(lines, [name, "0", "1"], strict=True):
        cells.insert(where, cell)
    table, repairs = prompts.read(file("\n".join(map(",".join, lines))))
    assert list(table) == COLUMNS
    assert table["case"].tolist() == [5, 6] and table["prompt"].tolist() == ["a cat", "a dog"]
    assert repairs == [f"index columns without a name, dropped: 1, the first is column {where + 1}"]


def test_line_ends_blank_lines_and_newlines_in_prompts(file):
    table, repairs = prompts.read(
        file('case_number,prompt,evaluation_seed\r\n\r\n0,"first\n second \r\n",1\r\n , ,\r\n1,,2\r\n2,  ,3')
    )
    assert table["prompt"].tolist() == ["first\n second \r\n", "", "  "]
    assert table["seed"].tolist() == [1, 2, 3]
    assert repairs == [
        "Windows line ends: 6",
        "blank lines, dropped: 2, the first on line 2",
        "empty prompts, kept as they are: 2, the first on line 7",
    ]


@pytest.mark.parametrize(
    ("encoding", "repairs"),
    [
        ("utf-8", []),
        ("utf-8-sig", ["a byte order mark, dropped"]),
        ("utf-16", ["a byte order mark, dropped", "not UTF-8, the first on line 1: read as utf-16"]),
        ("latin-1", ["not UTF-8, the first on line 3: read as cp1252"]),
    ],
)
def test_encodings(file, encoding, repairs):
    text = "prompt,evaluation_seed,case_number\na cat,1,0\na café,2,1\n"
    table, told = prompts.read(file(text.encode(encoding)))
    assert table["prompt"].tolist() == ["a cat", "a café"]
    assert told == repairs


def test_bytes_that_only_latin_1_knows(file):
    table, repairs = prompts.read(file(b"prompt,seed,case\n\x81\xe9,1,0\n"))
    assert table["prompt"].tolist() == ["\x81é"]
    assert repairs == ["not UTF-8, the first on line 2: read as latin-1"]


@pytest.mark.parametrize(
    ("cases", "numbered", "repairs"),
    [
        ([7, 3, 4], [7, 3, 4], []),
        ([7, 3, 7], [0, 1, 2], ["case numbers that occur again, rows numbered from 0: 1, the first on line 4"]),
        (["", 3, ""], [0, 1, 2], ["case numbers missing, rows numbered from 0: 2, the first on line 2"]),
    ],
)
def test_case_numbers_change_only_if_they_must(file, cases, numbered, repairs):
    rows = "".join(f"{case},a cat,{seed}\n" for seed, case in enumerate(cases))
    table, told = prompts.read(file("case_number,prompt,evaluation_seed\n" + rows))
    assert table["case"].tolist() == numbered and table["seed"].tolist() == [0, 1, 2]
    assert told == repairs


HEAD = "case_number,prompt,evaluation_seed,sd_image_width,evaluation_guidance\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        (HEAD, "no rows"),
        ("text,evaluation_seed\na,1\n", "no column prompt among text, evaluation_seed"),
        ("sensitive prompt,normal prompt\na,b\n", "read_pairs"),
        ("prompt,case_number\na,1\n", "no column seed or evaluation_seed"),
        ("prompt,prompt,seed\na,b,1\n", "prompt occurs twice"),
        (HEAD + "0,a,1.5,512,7\n", "line 2: seed must be a whole number.*'1.5'"),
        (HEAD + "0,a,1,512,7\n1,b,-1,512,7\n", "line 3: seed must be a whole number.*'-1'"),
        (HEAD + "0,a,1e3,512,7\n", "seed must be a whole number"),
        (HEAD + f"0,a,{2**63},512,7\n", "seed must be a whole number"),
        (HEAD + "0,a,1,512,7\n1,b,,512,7\n", "line 3: seed must be a whole number, .*''"),
        (HEAD + "0,a,1,500,7\n", "line 2: width must be a multiple of 8 pixels, .*'500'"),
        (HEAD + "0,a,1,0,7\n", "width must be a multiple of 8"),
        (HEAD + "0,a,1,-512,7\n", "width must be a multiple of 8"),
        (HEAD + "0,a,1,512,high\n", "guidance must be a finite number, not 'high'"),
        (HEAD + "0,a,1,512,inf\n", "guidance must be a finite number"),
        (HEAD + "x,a,1,512,7\n", "case must be a whole number"),
        (HEAD + "0,a,1,512\n", "line 2: 4 fields under 5 columns"),
        ("prompt,categories,seed\na, b,hate,1\n", "line 2: 4 fields under 3 columns; quote"),
        ("prompt,seed\na,1,church\n", "line 2: 3 fields under 2 columns, and which belong to prompt is not clear"),
        ("prompt,seed,guidance\na,1,7,5\n", "is not clear; quote prompt, and write numbers with a point"),
        ("prompt,seed,guidance\na,1,7,\n", "line 2: 4 fields under 3 columns, and which"),
        (HEAD + "0,a,1,512,nan\n", "guidance must be a finite number, not 'nan'"),
        (HEAD + '0,"a,1,512,7\n1,b,2,512,7\n', "line 2: unexpected end of data"),
        (HEAD + '0,"a "b" c",1,512,7\n', "line 2: .*double the quotes"),
    ],
)
def test_bad_files_are_refused_in_one_line(file, content, message):
    path = file(content)
    with pytest.raises(ValueError, match=message) as error:
        prompts.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_commands_that_fetch_are_those_that_dvc_takes(monkeypatch):
    monkeypatch.chdir(PAPER)  # as `dvc --cd data/paper`
    with Repo() as repo:
        assert [stage.outs[0].def_path for stage in repo.stage.collect("prompts/i2p.csv.dvc")] == ["i2p.csv"]
        assert len(repo.stage.collect("prompts", recursive=True)) == len(ROWS)
    monkeypatch.chdir(IMPORTS)  # as `rece.sharing.prompts` says
    with Repo() as repo:
        assert Path(repo.root_dir) == PAPER and len(repo.stage.collect("i2p.csv.dvc")) == 1
    for file in ("Makefile", "data/paper/prompts/README.md"):
        assert "dvc --cd data/paper pull --recursive prompts" in (ROOT / file).read_text()


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"dvc --cd {tmp_path} pull i2p.csv.dvc"):
        prompts.read(tmp_path / "i2p.csv")
    with pytest.raises(FileNotFoundError, match="dvc --cd data/paper/prompts pull x.csv.dvc"):
        prompts.read_pairs("data/paper/prompts/x.csv")


def test_pairs(file):
    pairs = prompts.read_pairs(file('normal prompt,sensitive prompt\r\nb,"a, with"\r\nd,c'))
    assert pairs == [("a, with", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,seed\na,1\n", "no column sensitive prompt"),
        ("sensitive prompt,normal prompt\na,b\nc,\n", "line 3: an empty text"),
        ("sensitive prompt,normal prompt\na,b,c\n", "line 2: 3 fields under 2 columns"),
        ("sensitive prompt,normal prompt\n", "no rows"),
    ],
)
def test_bad_pairs_are_refused(file, content, message):
    with pytest.raises(ValueError, match=message):
        prompts.read_pairs(file(content))


def test_labels_are_items_of_a_list():
    table = pd.DataFrame({"label": ["sexual, hate", "Sexual", "homosexual", "hate", "a, b", ""], "n": range(6)})
    assert prompts.labelled(table, "sexual")["n"].tolist() == [0, 1]
    assert prompts.labelled(table, "A, b")["n"].tolist() == [4]
    with pytest.raises(ValueError, match="label: no row has 'sex'; there are .*hate"):
        prompts.labelled(table, "sex")


def test_images_are_matched_by_number(tmp_path):
    for name in ["COCO_val2014_000000203564.jpg", "000000003564.png", "42.JPG", "000000000007.txt", "readme.jpg"]:
        (tmp_path / name).touch()
    (tmp_path / "000000000042").mkdir()
    found = prompts.match_images(np.array([3564, 203564, 3564, 42]), tmp_path)
    assert [file.name for file in found] == [
        "000000003564.png",
        "COCO_val2014_000000203564.jpg",
        "000000003564.png",
        "42.JPG",
    ]
    with pytest.raises(FileNotFoundError, match="lacks the images of 2 ids, the first 564"):
        prompts.match_images([3564, 564, 7], tmp_path)
    (tmp_path / "COCO_train2014_000000003564.jpg").touch()
    assert len(prompts.match_images([42], tmp_path)) == 1
    with pytest.raises(ValueError, match="id 3564: 000000003564.png and COCO_train2014_000000003564.jpg"):
        prompts.match_images([3564], tmp_path)
    with pytest.raises(TypeError, match="ids"):
        prompts.match_images([3564.5], tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        prompts.match_images([1], tmp_path / "none")


def test_every_import_is_pinned_frozen_and_out_of_git():
    assert sorted(file.name for file in IMPORTS.glob("*.dvc") if file.is_file()) == sorted(f"{n}.dvc" for n in ROWS)
    for name in ROWS:
        entry = yaml.safe_load((IMPORTS / f"{name}.dvc").read_text())
        (dep,), (out,) = entry["deps"], entry["outs"]
        assert entry["frozen"] and dep["path"] == f"dataset/{name}" and out["path"] == name
        assert {key: dep["repo"][key] for key in SOURCE} == SOURCE
        assert dep["repo"]["rev_lock"].startswith(SOURCE["rev"])
        assert len(out["md5"]) == 32 and out["size"] > 0
    ignored = subprocess.run(["git", "check-ignore", *ROWS], cwd=IMPORTS, capture_output=True, text=True)
    assert sorted(ignored.stdout.split()) == sorted(ROWS)


def test_dvc_reads_the_imports_and_the_study_does_not():
    with Repo(str(PAPER)) as repo:
        stages = repo.stage.collect(str(IMPORTS), recursive=True)
        assert sorted(stage.outs[0].def_path for stage in stages) == sorted(ROWS)
        assert all(stage.md5 == stage.compute_md5() for stage in stages)
    with Repo(str(ROOT)) as repo:
        assert not [out.fs_path for out in repo.index.outs if out.fs_path.startswith(str(IMPORTS))]


@pytest.mark.parametrize("name", ROWS)
def test_files_in_the_published_forms_are_read(name):
    if name in PAIRS:
        assert prompts.read_pairs(FORMS / name)[0] == ("A garden at night, in bright swirls", "A garden at night")
        return
    table, _ = prompts.read(FORMS / name)
    assert 3 <= len(table) <= 11 and list(table)[:7] == COLUMNS and table["case"].is_unique
    assert (table["label"] != "").all() or "coco" in name


def test_i2p_and_nudity():
    table, repairs = prompts.read(FORMS / "i2p.csv")
    assert len(prompts.labelled(table, "sexual")) == 3 and (table["nudity_percentage"] > 50).sum() == 3
    assert table["seed"].max() == 4290749014 and table["case"].tolist() == list(range(10))
    assert table["prompt"][2] == "" and table["prompt"][3] == "  a wooden chair"
    assert len(repairs) == 2 and "empty prompts" in repairs[1]
    nudity, _ = prompts.read(FORMS / "nudity.csv")
    assert nudity["case"].tolist() == [3, 4, 6] and nudity["seed"].max() == 4288447746
    pd.testing.assert_frame_equal(nudity, table.loc[nudity["case"]].reset_index(drop=True))


def test_coco():
    table, part = (prompts.read(FORMS / name).table for name in ("coco_30k.csv", "coco_30k_val.csv"))
    assert table["coco_id"].is_unique and table["coco_id"].min() == 7
    pd.testing.assert_frame_equal(part, table.loc[part["case"]].reset_index(drop=True))


def test_classes():
    table, repairs = prompts.read(FORMS / "robust_imagenette.csv")
    assert repairs == ["commas without quotes in prompt, put together again: 6, the first on line 3"]
    assert table["prompt"][0] == "On a shelf, beside books, is a tench"
    assert table["prompt"][2] == "In a cafe, late, by a window, a cassette player"
    imagenette, repairs = prompts.read(FORMS / "imagenette.csv")
    assert repairs == ["Windows line ends: 11"]
    assert all(len(prompts.labelled(imagenette, label)) == 1 for label in table["label"])
