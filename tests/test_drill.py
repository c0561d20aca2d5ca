"""Bad input ends in one line: the drill, and files that hypothesis damages. RECE_FUZZ=5000 tries more of them."""

import os

import drill
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import ROOT

import rece
from rece import attacks
from rece.edits import Edit
from rece.sharing import prompts, recover, show
from rece.study import config

TRIES = settings(
    max_examples=int(os.environ.get("RECE_FUZZ", "40")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", [drill.keywords, drill.meant, drill.files_, drill.commands, drill.full])
def test_no_case_of_the_drill_ends_badly(kind, capsys):
    table = drill.run([kind])
    assert table[table.ended.isin(drill.BAD)].to_dict("records") == []
    page = (ROOT / "notebooks/site/drill.md").read_text(encoding="utf-8")
    (row,) = [line.split("|") for line in page.splitlines() if line.startswith(f"| {kind.__name__.strip('_')}:")]
    counts = [len(table), (table.ended == "refused").sum(), (table.ended == "right").sum(), 0]
    assert [int(cell) for cell in row[2:6]] == counts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a file of each kind that is read, and what reads it."""
    folder, pipe = tmp_path_factory.mktemp("whole"), tiny.sd()
    eraser = rece.erase(pipe, "dog", relative=True, rounds=0, progress=False)
    eraser.save(folder / "eraser.safetensors")
    eraser.save_lora(folder, pipe=pipe)
    attacks.Attempts(["a dog"], [0], losses=[[1.0]]).save(folder / "attempts.safetensors")
    (folder / "prompts.csv").write_text("case,prompt,seed,guidance\n0,a dog,5,7.5\n1,a cat,6,7.5\n", encoding="utf-8")
    (folder / "params.yaml").write_bytes((config.root() / "params.yaml").read_bytes())
    return {
        "eraser.safetensors": Edit.load,
        "pytorch_lora_weights.safetensors": lambda file: recover.recover(pipe, file),
        "attempts.safetensors": attacks.Attempts.load,
        "prompts.csv": prompts.read,
        "params.yaml": config.params,
    }, folder


@pytest.mark.parametrize(
    "name",
    ["eraser.safetensors", "pytorch_lora_weights.safetensors", "attempts.safetensors", "prompts.csv", "params.yaml"],
)
@TRIES
@given(data=st.data())
def test_a_damaged_file_is_read_as_it_was_or_refused_in_one_line(name, whole, tmp_path, data):
    """Bytes are replaced, put in, and taken out, most often in the first thousand, where headers are."""
    readers, folder = whole
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        most = data.draw(st.sampled_from([64, 1000, len(content)]))
        at = data.draw(st.integers(0, min(most, len(content) - 1)))
        new = data.draw(st.binary(max_size=4))
        content[at : at + data.draw(st.integers(0, 4))] = new
    file = tmp_path / name
    file.write_bytes(content)
    for read in (readers[name], *([show.rows] if name.endswith("safetensors") else [])):
        try:
            read(file)
        except (ValueError, TypeError, OSError) as error:
            assert "\n" not in str(error) and str(error), repr(error)
