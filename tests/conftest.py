"""No network, one thread (or as many as RECE_TEST_THREADS says), no cache, and what many tests are given."""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by torch when it is imported
os.environ.setdefault("RECE_WORKERS", "1")  # so that spies see every call

import numpy as np  # noqa: E402
import pytest  # noqa: E402

# torch and rece are imported in fixtures: the process that only hands out tests needs neither.

# With its default parameters a notebook of a chain reads what those before it wrote.
CHAINS = (
    "dataset pretrain judge control erase attack evaluate sweep plot paper".split(),
    "choose fair limits compare rival arena audit".split(),
)
LONGEST = "course families evaluating pipeline audits arena project paper browser site".split()


def pytest_collection_modifyitems(items):
    """Notebooks, and modules that take long, come first, so that no process waits for another's at the end."""
    rank = {name: n for n, name in enumerate([*CHAINS[0], *CHAINS[1], *(f"test_{name}" for name in LONGEST)])}
    items.sort(key=lambda item: (item.path.suffix == ".py", rank.get(item.path.stem, len(rank))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs all of a chain."""
    from xdist.scheduler import LoadScopeScheduling

    class ByChain(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return next((names[0] for names in CHAINS if Path(scope).stem in names), scope)

    return ByChain(config, log)


def pytest_configure(config):
    """The study's cache of a session begins empty, for what notebooks and fixtures of many tests compute."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    os.environ["RECE_CACHE"] = folder.name


@pytest.fixture(autouse=True, scope="session")
def threads():
    import torch

    torch.set_num_threads(int(os.environ.get("RECE_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """The study's cache of each test begins empty."""
    monkeypatch.setenv("RECE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pipe():
    """A fresh tiny Stable Diffusion pipeline, float32."""
    import tiny

    return tiny.sd()


@pytest.fixture
def xl():
    """A fresh tiny Stable Diffusion XL pipeline, float32."""
    import tiny

    return tiny.sdxl()


@pytest.fixture
def spy(monkeypatch):
    """What is drawn into folders: a row per image with prompt (None if embedded), seed, guidance, width, height."""
    from rece import images

    rows, generate = [], images.generate

    def spying(pipe, prompts=None, *, seeds, **settings):
        size = settings.get("guidance"), settings.get("width"), settings.get("height")
        rows.extend((prompt, seed, *size) for prompt, seed in zip(prompts or [None] * len(seeds), seeds, strict=True))
        return generate(pipe, prompts, seeds, **settings)

    monkeypatch.setattr(images, "generate", spying)
    return rows


@pytest.fixture
def grey(monkeypatch):
    """Stands in for the CLIP score: the mean of each image."""
    monkeypatch.setattr(
        "rece.judges.scores.clip_score", lambda images, *_, **__: np.concatenate(list(images)).mean((1, 2, 3))
    )


@pytest.fixture
def squares(monkeypatch):
    """Stands in for LPIPS: the mean squared difference."""
    import tiny

    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.image.lpip._NoTrainLpips", tiny.Squares)
