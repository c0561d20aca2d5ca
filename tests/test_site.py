"""The README and the site: links lead somewhere, every figure is shown with its data, and pages need no other host."""

import re
import runpy
import subprocess
import sys

import pytest
import yaml
from playwright import sync_api
from project import CHROMIUM, HOW, ROOT, files

SITE = ROOT / "notebooks/site"
PAGES = [
    ROOT / "README.md",
    ROOT / "results/README.md",
    ROOT / "results/entries/README.md",
    *sorted(SITE.glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_are_in_git(page):
    known = set(files())
    known |= {parent for name in known for parent in map(str, (ROOT / name).relative_to(ROOT).parents)}
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8")):
        there = (page.parent / target).resolve().relative_to(ROOT).as_posix()
        assert there in known, f"{page.name} links to {target}"


def test_every_figure_in_git_is_shown_with_its_data():
    shown = yaml.safe_load((SITE / "pictures.yaml").read_text(encoding="utf-8"))
    figures = [name for name in files() if name.endswith(".png") and name.startswith(("figures/", "results/"))]
    assert sorted(row["file"] for row in shown) == sorted(figures)
    assert {row["data"] for row in shown} <= set(files())


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_solutions_are_folded_and_pictures_say_what_they_show():
    import nbformat

    build = runpy.run_path(str(SITE / "build.py"))
    for path in sorted((ROOT / "notebooks/course").glob("[0-9]_*.ipynb")):
        page = nbformat.reads(build["lesson"](path), 4)
        source = nbformat.read(path, 4)
        assert not any("SOLUTION" in cell.source for cell in page.cells)
        for cell, before in zip(page.cells, source.cells, strict=True):
            assert ("hide-input" in cell.metadata.get("tags", [])) == ("SOLUTION" in before.source)
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                assert len(cell.metadata.mystnb["image"]["alt"]) > 20


@pytest.fixture(scope="module")
def site():
    """The folder of the built site."""
    built = subprocess.run([sys.executable, SITE / "build.py", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / ".cache/site/html"


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css)""", text), page
        pictures = re.findall(r"<img[^>]*>", text)
        assert all(re.search(r'alt="[^"]{3,}"', one) for one in pictures if 'id="still"' not in one), page


@pytest.mark.skipif(CHROMIUM is None, reason=f"the site was not opened in a browser: {HOW}")
def test_what_is_chosen_is_shown(site):
    errors = []
    with sync_api.sync_playwright() as browsers:
        page = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"file://{site}/try.html")
        still, before = page.locator("#still"), page.locator("#still").get_attribute("src")
        page.get_by_label("attack").select_option("synonym")
        assert still.get_attribute("src") != before and "synonym" in still.get_attribute("alt")
        assert page.evaluate("document.getElementById('still').decode().then(() => true)")
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert not errors
