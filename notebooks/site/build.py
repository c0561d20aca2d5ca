"""`make site`: stage the pages, the lessons and what was measured, and build them with Sphinx, warnings as errors."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import yaml

import rece
from rece import attacks, audits, methods
from rece.study import figures

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STAGE, OUT = ROOT / ".cache/site/source", ROOT / ".cache/site/html"
SHOWN = (".png", ".csv", ".json", ".jsonl", ".safetensors")  # files that pages link to
WIDGET = "application/vnd.jupyter.widget-view+json"
API = {
    "rece": rece.HOMES,
    "rece.solver": ["edit_map", "derive", "gram", "compress", "guard_map", "discriminant", "factor"],
    "rece.erasing": ["maps"],
    "rece.methods": ["run"],
    "rece.attacks": ["run", "Attempts"],
    "rece.audits": ["run"],
    "rece.images": ["generate", "draw"],
    "rece.loading": ["load"],
}


def page(path: Path) -> str:
    """A Markdown page with links that work on the site: files go along, code is named."""

    def link(found: re.Match) -> str:
        picture, text, target = found.groups()
        there = (path.parent / target).resolve()
        if there.suffix in SHOWN and there.is_file():
            name = there.relative_to(ROOT)
            (STAGE / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, STAGE / "files" / name)
            return f"{picture}[{text}](files/{name})"
        if there.parent == HERE:
            return found.group()
        return text

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", link, path.read_text(encoding="utf-8"))


def lesson(path: Path) -> str:
    """A notebook of the course, with what its pictures show beside them and its solutions folded."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)  # scripts of another host would draw them: what they say is text too
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        source = "".join(cell["source"])
        if "### BEGIN SOLUTION" in source:
            cell["metadata"].setdefault("tags", []).append("hide-input")
            source = re.sub(r"^ *### (BEGIN|END) SOLUTION\n", "", source, flags=re.M)
            cell["source"] = source.splitlines(True)
        cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
        for output in cell["outputs"]:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return json.dumps(notebook, ensure_ascii=False)


def runs() -> str:
    """The page that lists the stage notebooks as `dvc repro` ran them here; they become pages of their own."""
    folder, listed = ROOT / "results/notebooks", []
    (STAGE / "runs").mkdir()
    for path in sorted(folder.rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any("papermill-error-cell-tag" in cell["metadata"].get("tags", []) for cell in cells):
            continue  # it broke off
        name = "-".join(path.relative_to(folder).with_suffix("").parts)
        (STAGE / "runs" / f"{name}.ipynb").write_text(lesson(path), encoding="utf-8")
        listed.append(f"{name} <runs/{name}>")
    text = "# Stage notebooks, as they ran\n\nEach stage of the pipeline is a notebook. These are what it wrote.\n\n"
    if not listed:
        return text + "None has run in this checkout: after `make repro` the site shows them.\n"
    return text + "```{toctree}\n" + "\n".join(listed) + "\n```\n"


def pictures() -> str:
    """The page of every figure with its data and its command."""
    parts = ["# Every figure, with its data and its command\n"]
    for row in yaml.safe_load((HERE / "pictures.yaml").read_text(encoding="utf-8")):
        for name in (row["file"], row["data"]):
            (STAGE / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, STAGE / "files" / name)
        parts.append(
            f"## {row['shows']}\n\n![{row['shows']}](files/{row['file']})\n\n"
            f"Data: [`{row['data']}`](files/{row['data']}). Drawn by `{row['command']}`.\n"
        )
    return "\n".join(parts)


def cards() -> str:
    """The page of methods, attacks and audits: what each file says of itself."""
    parts = ["# Methods, attacks and audits\n", "Each is one file. This page is made from their first lines.\n"]
    for package, title in ((methods, "Methods"), (attacks, "Attacks"), (audits, "Audits")):
        parts.append(f"## {title}\n")
        for name in package.names():
            module = import_module(f"{package.__name__}.{name}")
            about = inspect.getdoc(module).replace("<", "&lt;").replace("*", "\\*")
            holds = {attacks: "ACCESS", audits: "HOLDS"}.get(package)
            held = f" · the attacker holds: {getattr(module, holds)}" if holds else ""
            where = f"`{package.__name__.replace('.', '/')}/{name}.py`{held}"
            parts.append(f"### {figures.label(name)}\n\n{where}\n\n{about}\n")
    return "\n".join(parts)


def docstring(of) -> str:
    """A docstring in a block whose lines the browser wraps: a line that was full goes on in the next."""
    lines = []
    for line in (inspect.getdoc(of) or "").splitlines():
        if lines and len(lines[-1].rsplit("\n")[-1]) > 85 and line and not line.startswith(" "):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "```text\n" + "\n".join(lines) + "\n```\n"


def api() -> str:
    """The page of public names, with their docstrings as they are."""
    parts = ["# The library\n"]
    for module, names in API.items():
        parts.append(f"## {module}\n")
        for name in names:
            found = getattr(import_module(module), name)
            parts.append(f"### {name}\n\n```python\n{name}{inspect.signature(found)}\n```\n")
            parts.append(docstring(found))
            own = [(n, one) for n, one in vars(found).items() if callable(one) and not n.startswith("_")] if (
                inspect.isclass(found)) else []  # fmt: skip
            for method, one in own:
                parts.append(f"#### {name}.{method}\n\n{docstring(one)}")
    return "\n".join(parts)


def stills(quick: bool) -> None:
    """The pictures of the page `try`, and what each shows. quick: of two states alone."""
    from rece import course
    from rece.course import explore

    lab, states, folder = course.open(), [], STAGE / "_static/try"
    folder.mkdir()
    methods = {"original": ("original", 0), "UCE": ("UCE", 0), "guarded": ("guarded", 0)}
    methods |= {f"RECE, {n} rounds": ("RECE", n) for n in (1, 3, 5, 8)}
    for n, (concept, name, attack) in enumerate(product(("church", "dog"), methods, ("plain", "synonym", "c′"))):
        if quick and n > 1:
            break
        method, rounds = methods[name]
        result = explore.show(lab, explore.State(concept, method, rounds, attack=attack))
        (folder / f"{n}.png").write_bytes(explore.picture(result))
        state = {"concept": concept, "method": name, "attack": attack, "file": f"{n}.png"}
        states.append(state | {"says": result.says, "code": result.code})
    (STAGE / "_static/states.js").write_text(f"const STATES = {json.dumps(states)};\n", encoding="utf-8")


def stage(quick: bool = False) -> None:
    """Fill the folder that Sphinx reads."""
    shutil.rmtree(STAGE, ignore_errors=True)
    (STAGE / "_static").mkdir(parents=True)
    shutil.copy(HERE / "conf.py", STAGE)
    for name in ("site.css", "try.js"):
        shutil.copy(HERE / name, STAGE / "_static")
    stills(quick)
    for path in HERE.glob("*.md"):
        (STAGE / path.name).write_text(page(path), encoding="utf-8")
    for name, made in {"pictures": pictures, "runs": runs, "cards": cards, "api": api}.items():
        (STAGE / f"{name}.md").write_text(made(), encoding="utf-8")
    (STAGE / "course").mkdir()
    for path in (ROOT / "notebooks/course").glob("*.ipynb"):
        (STAGE / "course" / path.name).write_text(lesson(path), encoding="utf-8")


if __name__ == "__main__":
    stage(quick="--quick" in sys.argv)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", STAGE, OUT]
    failed = subprocess.run(command).returncode
    print(f"{'failed' if failed else 'built'}: {OUT / 'index.html'}")
    sys.exit(failed)
