"""What the repository says about itself: its files, its DVC stages and the papermill commands in them."""

import os
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from papermill.cli import papermill

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
    """One papermill command: the notebook, where the executed copy goes, and what is passed to it."""

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
        start = next((n for n, word in enumerate(words) if Path(word).name == "papermill"), None)
        if start is not None:
            options = papermill.make_context("papermill", words[start + 1 :], resilient_parsing=True).params
            passed = dict(options["parameters"] or ())
            runs.append(
                Run(options["notebook_path"], options["output_path"], passed, list(options["parameters_file"] or ()))
            )
    return runs


@cache
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
