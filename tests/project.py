"""What the repository says about itself: its files, its DVC stages and the notebooks that they run."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from rece.study import cache
from rece.study.run import parser

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "data/paper"  # a DVC project of its own, whose stages run the same notebooks


def files(root: Path = ROOT) -> list[str]:
    """Every file of the checkout that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [file for file in listed if file and (root / file).is_file()]


def params(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text())


@dataclass
class Run:
    """One run of a notebook: where the executed copy goes, and what is passed to it."""

    notebook: str
    output: str
    passed: dict[str, str]
    files: list[str]


@dataclass
class Stage:
    """One stage of the pipeline with its matrix and templates resolved; `matrix` is what follows the @ in its name."""

    name: str
    frozen: bool
    deps: list[str]
    params: list[str]
    outs: list[str]
    runs: list[Run]

    @property
    def matrix(self) -> str | None:
        return self.name.partition("@")[2] or None


def _runs(cmd) -> list[Run]:
    runs = []
    for line in [cmd] if isinstance(cmd, str) else cmd or []:
        words = shlex.split(line)
        if "rece.study.run" in words:
            args = parser().parse_args(words[words.index("rece.study.run") + 1 :])
            runs.append(Run(args.notebook, args.output, dict(args.parameters), [args.parameters_file]))
    return runs


@functools.cache
def stages(root: Path = ROOT) -> list[Stage]:
    """All stages of all dvc.yaml files of a DVC project, every matrix item by itself; paths are relative to its root.

    Imports (.dvc files) are no stages.
    """
    with Repo(str(root)) as repo:
        found = []
        for stage in (stage for stage in repo.index.stages if isinstance(stage, PipelineStage)):
            declared = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            found.append(
                Stage(
                    name=stage.name,
                    frozen=stage.frozen,
                    deps=[os.path.relpath(dep.fs_path, root) for dep in stage.deps if dep not in declared],
                    params=[name for dep in declared for name in dep.params],
                    outs=[os.path.relpath(out.fs_path, root) for out in stage.outs],
                    runs=_runs(stage.cmd),
                )
            )
    return found


def stage_notebooks() -> list[str]:
    """The notebooks that DVC runs, which are kept without outputs; the others may keep theirs."""
    return sorted({run.notebook for stage in [*stages(), *stages(PAPER)] for run in stage.runs})


HOW = "install Chromium, by apt-get install chromium or the like"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FOLDERS = ("rece/attacks", "rece/judges")  # their modules are found by name


def code_of(file: str) -> str:
    """Python source of a .py file, or of a notebook's code cells without magics."""
    text = (ROOT / file).read_text()
    if file.endswith(".py"):
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", "\n".join(cells), flags=re.MULTILINE)


@functools.cache
def imported(file: str) -> list[str]:
    """The files and FOLDERS of rece that a file imports, directly or not, also inside of functions, and their data.

    Of the methods, which are found by name too, those of params.yaml.
    """
    found = cache.imported(code_of(file))
    if "rece/methods/__init__.py" in found:
        named = [f"rece/methods/{name}.py" for name in params()["erase"]]
        found |= {*named, *cache.imported("\n".join(map(code_of, named)))}
    for folder in (folder for folder in FOLDERS if any(one.startswith(f"{folder}/") for one in found)):
        found |= cache.imported("\n".join(module.read_text() for module in (ROOT / folder).glob("*.py")))
    if "rece/guarding.py" in found:
        found.add("rece/everyday.txt")  # which it reads
    return sorted({next((folder for folder in FOLDERS if f.startswith(f"{folder}/")), f) for f in found})
