"""The promises of dvc.yaml, kept on a copy of the repository with a stand-in for the run of a notebook.

The stand-in writes every output of its stage as a digest of what the stage declares to read, its dependencies and
parameters. So the real dvc.yaml, params.yaml and notebooks are run by the real DVC, without the numbers.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from project import ROOT, files, stages

STAND_IN = """
import hashlib, json, os, pathlib, yaml

name = os.environ["DVC_STAGE"]
stage = json.loads(pathlib.Path("{stages}").read_text())[name]
tree = yaml.safe_load(pathlib.Path("params.yaml").read_text())


def digest(params):
    found = hashlib.sha256(name.encode())
    for dep in map(pathlib.Path, stage["deps"]):
        for file in sorted(f for f in [dep, *dep.rglob("*")] if f.is_file() and "__pycache__" not in f.parts):
            found.update(file.read_bytes())
    for param in params:
        value = tree
        for key in param.split("."):
            value = value[key]
        found.update(json.dumps(value, sort_keys=True).encode())
    return found.hexdigest()


for out in map(pathlib.Path, stage["outs"]):
    if stage["params"].count("concept"):  # a folder for each concept, as the real stage has it
        params = [param for param in stage["params"] if param not in ("concept", "concepts")]
        files = {{out / one / "digest.txt": [*params, f"concept.{{one}}"] for one in tree["concepts"]}}
    else:
        files = {{out if out.suffix else out / "digest.txt": stage["params"]}}
    for file, params in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(digest(params))
with open("{log}", "a") as log:
    print(name, file=log)
"""

CONCEPTS = ["dog", "twemoji"]  # of the copy: an object, which is swept too, and a style


class Copy:
    """A copy of the repository in `folder`, in a git repository of its own and without results.

    Its study has the two CONCEPTS, since DVC parses and writes the whole lock file for every stage, and its lock file
    has the frozen stages alone.
    """

    def __init__(self, folder: Path):
        self.root, self.log = folder / "copy", folder / "log"
        for file in files():
            target = self.root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target)
        self.git("init", "--quiet")
        self.edit(
            "params.yaml",
            lambda tree: tree.update(concepts=CONCEPTS, sweep_concepts=CONCEPTS[:1], arena_methods=["esd_x"]),
        )
        frozen = {stage.name for stage in stages(self.root) if stage.frozen}
        self.edit("dvc.lock", lambda tree: [tree["stages"].pop(name) for name in {*tree["stages"]} - frozen])
        self.commit()
        described = {
            stage.name: {"deps": stage.deps, "params": stage.params, "outs": stage.outs} for stage in stages(self.root)
        }
        self.described = folder / "stages.json"
        self.described.write_text(json.dumps(described))
        stand_in = self.root / "rece/study/run.py"
        stand_in.write_text(STAND_IN.format(stages=self.described, log=self.log), encoding="utf-8")
        self.commit()
        self.path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def edit(self, file: str, change: Callable[[dict], object]):
        tree = yaml.safe_load((self.root / file).read_text())
        change(tree)
        (self.root / file).write_text(yaml.safe_dump(tree, sort_keys=False))

    def to_run(self, concept: str | None = None) -> list[str]:
        """The stages that are not frozen, by name: those that one concept's section reaches, or all."""
        found = [stage for stage in stages(self.root) if stage.runs and not stage.frozen]
        found = [stage for stage in found if concept is None or stage.name not in ("compare", "audits")]  # own groups
        return sorted(stage.name for stage in found if concept is None or stage.matrix in (None, concept))

    def git(self, *command: str):
        identity = ["-c", "user.name=copy", "-c", "user.email=copy@localhost", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", *identity, *command], cwd=self.root, check=True)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "copy")

    def repro(self) -> list[str]:
        """The stages that `dvc repro` ran, in their order."""
        self.log.write_text("")
        command = [sys.executable, "-m", "dvc", "repro"]
        environment = {**os.environ, "PATH": self.path}
        result = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return self.log.read_text().split()

    def lock_check(self, root: Path) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": self.path}
        return subprocess.run([root / ".ci/lock"], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    """The copy after its first `dvc repro`; every test leaves it reproduced."""
    made = Copy(tmp_path_factory.mktemp("pipeline"))
    made.first = made.repro()
    return made


def test_first_repro_runs_every_stage_but_the_frozen_ones(copy):
    assert sorted(copy.first) == copy.to_run() and len(copy.first) == 1 + 2 + 2 + 1 + 1 + 1 + 1
    assert (copy.root / "notebooks/dvc.lock").read_bytes() == (ROOT / "notebooks/dvc.lock").read_bytes()


def test_second_repro_does_nothing(copy):
    before = {file: (copy.root / file).read_bytes() for file in files(copy.root)}
    assert copy.repro() == []
    assert {file: (copy.root / file).read_bytes() for file in files(copy.root)} == before


def test_every_concept_has_a_section_of_its_own():
    concepts = {stage.matrix for stage in stages() if stage.matrix and not stage.frozen}
    assert concepts >= set(CONCEPTS)
    for stage in stages():
        named = {name.split(".")[-1] for name in stage.params} & concepts
        assert named == ({stage.matrix} & concepts), stage.name


@pytest.mark.parametrize("concept", CONCEPTS[:1])
def test_changing_one_concepts_section_reruns_that_concept_alone(copy, concept):
    copy.edit("params.yaml", lambda tree: tree["concept"][concept].update(changed=True))
    assert sorted(copy.repro()) == copy.to_run(concept)


def test_lock_check_notices_changed_code_on_a_fresh_clone(copy, tmp_path):
    copy.commit()
    clone = tmp_path / "clone"
    copy.git("clone", "--quiet", str(copy.root), str(clone))
    agrees = copy.lock_check(clone)
    assert agrees.returncode == 0, agrees.stdout + agrees.stderr
    with (clone / "notebooks/attack.ipynb").open("a") as notebook:
        notebook.write("\n")
    stale = copy.lock_check(clone)
    assert stale.returncode == 1 and "attack@dog" in stale.stderr
