"""Methods are found by name and are what they say."""

import pytest
import torch

from rece import Eraser, erase, methods


def test_names():
    assert {"rece", "uce"} <= set(methods.names()) and "original" not in methods.names()


def test_uce_is_the_start_of_rece(pipe):
    settings = {"target": "cat", "start": {"lamb": 2.0}, "rounds": 2}
    uce, rece = (methods.run(name, pipe, ["dog", "pistol"], **settings) for name in ("uce", "rece"))
    assert isinstance(uce, Eraser) and len(uce.history) == 1 and uce.provenance["rounds"] == 0
    torch.testing.assert_close(uce.map, rece.history[0], rtol=0, atol=0)
    assert (uce.map - rece.map).norm() > 0.01


def test_rece_is_erase(pipe):
    torch.testing.assert_close(methods.run("rece", pipe, "dog").map, erase(pipe, "dog").map, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["original", "rcee", "__init__", ""])
def test_unknown_method(pipe, name):
    with pytest.raises(ValueError, match="method must be one of adavd, .*uce, not"):
        methods.run(name, pipe, "dog")


def test_unknown_setting(pipe):
    with pytest.raises(TypeError, match="lamda"):
        methods.run("rece", pipe, "dog", lamda=1)
