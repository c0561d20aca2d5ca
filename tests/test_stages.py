"""The stages' notebooks: equal inputs give equal files, to the byte."""

import json
from pathlib import Path

from project import ROOT, params

from rece import methods
from rece.study import config

GRADIENT = {"n": 2, "updates": 2, "times": 2, "steps": 2, "batch_size": 2}
QUICK = {"plain": {}, "synonym": {}, "unlearndiff": GRADIENT, "closed_form": {"lamb": 0.1}}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_stage_gives_equal_bytes_with_one_worker_and_with_two(tmp_path, monkeypatch):
    """The notebooks' cells, run in this process. test_paper runs such notebooks as DVC does."""
    small = params()
    small["generate"] |= {"steps": 2, "batch_size": 4}
    small["attack"] |= {"n": 4, "quick": QUICK}
    small["evaluate"] |= {"n": 8}

    def stage(name: str, /, **given):
        names = {}
        for cell in json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {key: small[key] for key in names if key in small} | given

    erasers, outs = str(tmp_path / "erasers"), []
    pipe = config.load(small["model"])
    for method in ("uce", "rece"):
        methods.run(method, pipe, ["dog"], **small["erase"][method]).save(tmp_path / f"erasers/{method}.safetensors")
    for workers in ("1", "2"):
        monkeypatch.setenv("RECE_WORKERS", workers)
        monkeypatch.setenv("RECE_CACHE", str(tmp_path / f"cache-{workers}"))
        out = tmp_path / workers
        stage("attack", name="dog", erasers=erasers, out=str(out / "attack"))
        stage("evaluate", name="dog", erasers=erasers, attempts=str(out / "attack"), out=str(out / "evaluate"))
        outs.append(_files(out))
    assert {"evaluate/success.csv", "evaluate/shown.npz", "attack/uce-closed_form.safetensors"} <= set(outs[0])
    assert outs[0] == outs[1]
