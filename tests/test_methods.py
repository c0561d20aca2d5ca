"""Methods are found by name and are what they say."""

import warnings

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


@pytest.mark.parametrize("method", ["safer", "semantic_surgery"])
def test_every_method_checks_the_texts_that_erase_checks(pipe, method):
    wrong = {"concept: .* special": ("<|endoftext|>", {}), "concept: .* give it once": (["dog", "dog"], {})}
    wrong |= {"target: .* names the concept": ("dog", {"target": "a dog"}), "concept must be": ("", {})}
    for message, (concept, settings) in wrong.items():
        with pytest.raises(ValueError, match=message):
            methods.run(method, pipe, concept, **settings)


@pytest.mark.parametrize("carried", ["safer", "adavd"])
def test_a_pipeline_that_carries_an_edit_is_refused(pipe, carried):
    with methods.run(carried, pipe, "dog").on(pipe):
        for method in ("leace", "rece", "esd_x"):
            with pytest.raises(ValueError, match="the pipeline carries an eraser: remove it"):
                methods.run(method, pipe, "cat")


@pytest.mark.parametrize("method", ["uce", "rece", "anchored", "guarded", "guarded_layers", "safer"])
def test_a_warning_comes_once(pipe, method):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        methods.run(method, pipe, "dog.")
    assert sum("ends in" in str(one.message) for one in found) == 1
