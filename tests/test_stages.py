"""The stages' notebooks, run as DVC runs them: equal inputs give equal files, to the byte."""

from pathlib import Path

import yaml
from project import ROOT, params

from rece import methods
from rece.study import config
from rece.study.run import run

GRADIENT = {"n": 2, "updates": 2, "times": 2, "steps": 2, "batch_size": 2}
QUICK = {"plain": {}, "synonym": {}, "unlearndiff": GRADIENT, "closed_form": {"lamb": 0.1}}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_stage_gives_equal_bytes_with_one_worker_and_with_two(tmp_path, monkeypatch):
    small = params()
    small["generate"] |= {"steps": 2, "batch_size": 4}
    small["attack"] |= {"n": 4, "quick": QUICK}
    small["evaluate"] |= {"n": 8}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small))

    def stage(name: str, /, **given):
        run(ROOT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", tmp_path / "params.yaml", given)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
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
