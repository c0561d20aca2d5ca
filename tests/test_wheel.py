"""The wheel works outside of the checkout: its modules, its data, and the command."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
import tiny
from project import ROOT

import rece


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder with the wheel's content in "site" and a tiny pipeline in "model"; nothing of the checkout."""
    folder = tmp_path_factory.mktemp("outside")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "rece"):  # a link to them, so that the build leaves no folder behind
        (source / name).symlink_to(ROOT / name)
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--target", str(folder / "site"), str(wheel)], check=True
    )
    tiny.sd().save_pretrained(folder / "model")
    return folder


def run(outside, *command):
    """What a command prints that finds no other rece than the wheel's."""
    own = {"PYTHONPATH": str(outside / "site"), "OMP_NUM_THREADS": "1", "HOME": str(outside / "home")}
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, *command], cwd=outside, env=inherited | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_its_data(outside):
    (wheel,) = outside.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {str(file.relative_to(ROOT)) for file in (ROOT / "rece").rglob("*") if file.suffix in (".py", ".jinja")}
    assert here <= names and {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"rece"}
    assert run(outside, "-c", "import rece; print(rece.__file__)").startswith(str(outside / "site"))


def test_the_command_runs_outside_of_the_checkout(outside):
    command = str(outside / "site" / "bin" / "rece")
    assert run(outside, command, "--version").strip() == metadata.version("rece")
    program = "import rece, onnxruntime\nfrom rece.__main__ import main\n"  # one process, as the imports take longest
    for words in (
        "erase model dog -o dog.safetensors",
        "show dog.safetensors",
        "lora model dog.safetensors -o dog-lora",
        "show dog-lora",
        "certify model dog.safetensors --others cat",
    ):
        program += f"assert main({words.split()}) == 0\n"
    out = run(outside, "-c", program)
    assert all(word in out for word in ("eraser", "LoRA", "passed: "))
    assert "without dog" in (outside / "dog-lora" / "README.md").read_text()
    assert rece.Eraser.load(outside / "dog.safetensors").provenance["concepts"] == ["dog"]
    assert [file for file in (outside / "home").rglob("*") if file.is_file()] == []
