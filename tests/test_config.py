"""Files of parameters are checked, and what is wrong is named."""

import runpy
import subprocess
import sys

import pytest
import yaml
from project import PAPER, ROOT

from rece.study import config

pytestmark = pytest.mark.filterwarnings("ignore:.*rece.study.config.* found in sys.modules")


def nudity(tree: dict) -> dict:
    return tree["concept"]["nudity"]


def test_the_files_of_parameters_pass_their_check():
    for folder in (ROOT, PAPER):
        params = config.params(folder / "params.yaml")
        assert set(params["concepts"]) <= set(params["concept"])


@pytest.mark.parametrize(
    "folder, change, message",
    [
        (ROOT, lambda t: t["generate"].update(guidence=3), "generate.guidence: no such key"),
        (ROOT, lambda t: t.pop("judge"), "judge: this key is missing"),
        (ROOT, lambda t: t["concepts"].append("unicorns"), "concepts: 'unicorns' has no section in concept"),
        (ROOT, lambda t: t["validation"].append("cow"), "validation: 'cow' has no section in concept"),
        (ROOT, lambda t: t["arena_methods"].append("ours"), "arena_methods: 'ours' has no line in arena.given"),
        (ROOT, lambda t: t["arena"]["grid"].pop("sld"), "arena_methods: 'sld' has no line in arena.grid"),
        (ROOT, lambda t: t["audits"]["rounding"]["attacks"].append("x"), "rounding.attacks: 'x' has no line in fair_"),
        (ROOT, lambda t: t["audits"]["transfer"].append("x"), "audits.transfer: 'x' has no line in fair_attacks"),
        (ROOT, lambda t: t["limits"]["tried"].update(x={}), "limits.tried: 'x' has no line in fair_attacks"),
        (ROOT, lambda t: t["attack"].update(budget="seed"), "attack.budget: .*'quick' or 'full', not 'seed'"),
        (ROOT, lambda t: t["attack"].update(budget="huge"), "attack.budget: .*'quick' or 'full', not 'huge'"),
        (ROOT, lambda t: t["concept"]["dog"].update(kind="animal"), "concept.dog.kind: .*'object', .*not 'animal'"),
        (ROOT, lambda t: t["concept"]["dog"].pop("target"), "concept.dog.target: this key is missing"),
        (PAPER, lambda t: t["evaluate"].update(image="x"), "evaluate.image: no such key"),
        (PAPER, lambda t: t["concepts"].append("cats"), "concepts: 'cats' has no section in concept"),
        (PAPER, lambda t: t["concept"].update(nudity=None), "concept.nudity: "),
        (PAPER, lambda t: nudity(t).update(keep=[]), "concept.nudity.keep: no such key"),
        (PAPER, lambda t: nudity(t).update(attacks=["mna"]), "concept.nudity.attacks: 'mna' has no line in attack"),
        (PAPER, lambda t: nudity(t).update(numbers={"reec": {}}), "nudity.numbers: 'reec' has no line in erase"),
        (PAPER, lambda t: nudity(t)["asked"]["i2p"].update(m=5), "concept.nudity.asked.i2p.m: no such key"),
        (PAPER, lambda t: nudity(t)["kept"]["coco"].pop("scores"), "kept.coco.scores: this key is missing"),
        (PAPER, lambda t: nudity(t)["asked"].update(own=None), "concept.nudity.asked.own: "),
        (PAPER, lambda t: t.update(sweep={}), ": this key is missing"),  # of the embedded model's: then all of them
        (PAPER, lambda t: t.clear(), ": this key is missing"),
    ],
)
def test_a_wrong_file_is_refused_by_name_in_one_line(tmp_path, folder, change, message):
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    change(tree)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=f"^mine.yaml: .*{message}") as error:
        config.params(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, None),
        ("", "error: .*No such file.*mine.yaml"),
        ("a: [1\nb: 2\n", "error: mine.yaml: no YAML .*line 2"),
        ("generate: {step: 50}", "error: mine.yaml: "),
    ],
)
def test_the_check_of_a_file_ends_well_or_with_one_line(tmp_path, monkeypatch, text, message):
    """A text as the code of SystemExit is printed to stderr, and the process ends with code 1."""
    path = PAPER / "params.yaml" if text is None else tmp_path / "mine.yaml"
    if text:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["rece.study.config", str(path)])
    if message is None:
        runpy.run_module("rece.study.config", run_name="__main__")
        return
    with pytest.raises(SystemExit, match=message) as ended:
        runpy.run_module("rece.study.config", run_name="__main__")
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code


def test_the_check_without_a_file_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rece.study.config"])
    with pytest.raises(SystemExit, match="^error: "):
        runpy.run_module("rece.study.config", run_name="__main__")


def test_a_missing_model_folder_is_named():
    with pytest.raises(FileNotFoundError, match="data/emoji-difusion"):
        config.load("data/emoji-difusion")


def test_who_runs_a_stage_imports_neither_torch_nor_diffusers():
    code = "import sys, rece.study.run; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
