"""The repository's files agree with each other."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions

import papermill
import pytest
import yaml
from dvc.utils.serialize import modify_yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import PAPER, ROOT, code_of, files, imported, params, stage_notebooks, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib"}


def unsafe_loads(source: str) -> list[int]:
    """Lines of `source` that can unpickle a file: they would run whatever code the file holds."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            (name == "torch.load" and keywords.get("weights_only") != "True")
            or (name.split(".")[0] in PICKLES and name.split(".")[-1] in {"load", "loads", "Unpickler"})
            or name.split(".")[-1] == "read_pickle"
            or keywords.get("allow_pickle", "False") != "False"
        ):
            lines.append(call.lineno)
    return lines


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [
        Requirement(entry) for entry in [*PROJECT["dependencies"], *(entry for extra in extras for entry in extra)]
    ]


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_conda_installs_what_make_setup_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    extras = "study,course,dev,data,cluster,site,browser"
    assert set(extras.split(",")) | {"scores"} == set(PROJECT["optional-dependencies"])
    assert pip == ["--constraint .ci/constraints.txt", f"-e .[{extras}]"]
    recipe = (ROOT / "Makefile").read_text()
    assert "--constraint .ci/constraints.txt" in recipe and f"'.[{extras}]'" in recipe
    assert PROJECT["requires-python"] == ">=" + conda[0].removeprefix("python=")
    assert set(conda[1:]) == {"pip", "nodejs"}


def test_every_requirement_has_a_lower_bound_and_a_locked_version_in_its_range():
    not_installed = {"torch-fidelity"}  # of the extra `scores`
    for one in requirements():
        assert {spec.operator for spec in one.specifier} == {">="}, one
        assert one.name in not_installed or one.specifier.contains(locked()[canonicalize_name(one.name)]), one


def test_what_is_installed_is_what_is_locked():
    """A version that comes tomorrow changes nothing. Other systems and CUDA need further packages."""
    found = {canonicalize_name(one.metadata["Name"]): one.version.split("+")[0] for one in distributions()}
    assert {name: found[name] for name in locked().keys() & found} == {n: v for n, v in locked().items() if n in found}
    assert {canonicalize_name(one.name) for one in requirements()} - {"torch-fidelity"} <= locked().keys() & found


def test_the_library_without_its_extras_has_all_that_it_imports():
    names = {"yaml": "pyyaml", "PIL": "pillow"}
    installed = {Requirement(entry).name for entry in PROJECT["dependencies"]}
    for file in (file for file in files() if file.startswith("rece/") and file.endswith(".py")):
        if file.startswith(("rece/study", "rece/judges", "rece/emoji", "rece/course")):
            continue
        tree = ast.parse(code_of(file))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
        found = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"rece"}
        assert {names.get(name, name) for name in found} <= installed, file


def test_stage_notebooks_are_stripped():
    assert stage_notebooks()
    command = [sys.executable, "-m", "nbstripout", "--verify", *stage_notebooks()]
    verdict = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert verdict.returncode == 0, f"strip them with nbstripout:\n{verdict.stdout}{verdict.stderr}"


def test_commit_hook_strips_the_stage_notebooks_and_no_other():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (pattern,) = [hook["files"] for repo in config["repos"] for hook in repo["hooks"] if hook["id"] == "nbstripout"]
    assert sorted(file for file in files() if re.search(pattern, file)) == stage_notebooks()


@pytest.mark.parametrize("notebook", stage_notebooks())
def test_notebook_parameters_come_from_params_or_the_command(notebook):
    """papermill only warns about a name that a notebook does not know, so a misspelt one would go unnoticed."""
    known = papermill.inspect_notebook(str(ROOT / notebook))
    assert known, f"{notebook} has no cell tagged 'parameters'"
    for stage in stages():
        for run in (run for run in stage.runs if run.notebook == notebook):
            sections = {name for file in run.files for name in yaml.safe_load((ROOT / file).read_text())}
            declared = {name.split(".")[0] for name in stage.params}
            assert set(run.passed) <= set(known), f"{stage.name} passes names that {notebook} does not have"
            read = set(known) - set(run.passed)
            assert read <= sections, f"{stage.name}: no such section in {run.files}"
            assert read <= declared, f"{stage.name}: a change of these parameters would not rerun it"
            assert notebook in stage.deps, f"{stage.name}: a change of {notebook} would not rerun it"


@pytest.mark.parametrize(
    "stage", [stage for stage in stages() if stage.runs and "rece/__init__.py" in stage.deps], ids=lambda s: s.name
)
def test_a_stage_depends_on_what_its_notebook_imports_and_on_nothing_else(stage):
    (run,) = stage.runs
    wanted = set(imported(run.notebook))
    if "method" in run.passed:  # its file, and what that imports of the folder's own
        file = f"rece/methods/{run.passed['method']}.py"
        shared = ("_esd", "_tokens", "_training", "_watching", "double_projections")
        wanted |= {file, *(f"rece/methods/{name}.py" for name in shared)}
        assert wanted >= set(imported(file))
    if "rece/study/auditing.py" in wanted:  # which finds audits and the arena's methods by name
        found = ("rece/audits", "rece/methods")
        wanted = {*found, *(file for file in wanted if not file.startswith(found))}
    assert {dep for dep in stage.deps if dep.startswith("rece")} == wanted


def test_every_audit_of_the_parameters_has_its_stage():
    section = params()["audits"]
    wanted = [*section["tried"], *section["relearning"], "rounding", "transfer"]
    assert [stage.matrix for stage in stages() if stage.name.startswith("audit@")] == wanted


@pytest.mark.parametrize("notebook", stage_notebooks())
def test_params_sections_have_every_key_of_the_notebooks_defaults(notebook):
    """papermill replaces a dictionary as a whole, so a key that params.yaml lacks is lost."""
    sections = params()
    for name, parameter in papermill.inspect_notebook(str(ROOT / notebook)).items():
        section = sections.get(name)
        try:
            default = ast.literal_eval(parameter["default"])
        except ValueError:
            continue
        if isinstance(default, dict) and isinstance(section, dict):
            assert set(default) <= set(section), f"params.yaml: section {name} lacks what {notebook} reads"


def test_dvc_writes_the_parameters_back_as_they_are(tmp_path):
    """`dvc exp run -S` rewrites the file: its layout must be the one that DVC's writer keeps."""
    text = (ROOT / "params.yaml").read_text()
    copy = tmp_path / "params.yaml"
    copy.write_text(text)
    with modify_yaml(str(copy)) as tree:
        tree["concept"]["dog"]["target"] = "cat"
    changed = [line for line, old in zip(copy.read_text().splitlines(), text.splitlines(), strict=True) if line != old]
    assert changed == ["  dog: {kind: object, erase: [dog], target: cat}  # one object"]


def test_lock_holds_no_stage_that_is_gone():
    locks = [ROOT / file for file in files() if file.split("/")[-1] == "dvc.lock"]
    assert ROOT / "dvc.lock" in locks
    for lock in locks:
        project = PAPER if lock.is_relative_to(PAPER) else ROOT
        assert set(yaml.safe_load(lock.read_text())["stages"]) <= {stage.name for stage in stages(project)}


@pytest.mark.parametrize("file", [file for file in files() if file.endswith((".py", ".ipynb"))])
def test_nothing_is_unpickled(file):
    assert unsafe_loads(code_of(file)) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "joblib.load(path)",
        "pandas.read_pickle(path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_loads_are_found(source):
    assert unsafe_loads(f"x = {source}") == [1]
    assert unsafe_loads("torch.load(path, weights_only=True); numpy.load(path); json.load(file)") == []
