"""No network, one thread (or as many as RECE_TEST_THREADS says), and the tiny pipelines as fixtures."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RECE_WORKERS", "1")  # so that spies see every call

import pytest  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("RECE_TEST_THREADS", "1")))


@pytest.fixture
def pipe():
    """A fresh tiny Stable Diffusion pipeline, float32."""
    return tiny.sd()


@pytest.fixture
def xl():
    """A fresh tiny Stable Diffusion XL pipeline, float32."""
    return tiny.sdxl()
