"""Q16 with tiny random weights, and the conversion of its prompts."""

import json
import os
import pickle

import numpy as np
import pytest
import tiny
import torch
from pictures import cases, pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel

from rece import files
from rece.judges.q16 import Q16, convert


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny random CLIP of width 16."""
    return tiny.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def prompts(tmp_path):
    save_file({"prompts": tiny.q16_vectors()}, tmp_path / "prompts.safetensors")
    return tmp_path / "prompts.safetensors"


@torch.no_grad()
def test_q16_is_the_softmax_of_a_hundred_cosines(clip, prompts):
    images = pictures(5)
    found = Q16(prompts, clip, batch_size=2).answers(images, cases(*"abcde"))
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessor.from_pretrained(clip)
    for i, image in enumerate(images):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
        x = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        cosines = [(x @ v / x.norm() / v.norm()).item() for v in tiny.q16_vectors()]
        odds = np.exp(100 * (cosines[1] - cosines[0]))
        np.testing.assert_allclose(found.inappropriate[i], odds / (1 + odds), atol=1e-4)
        assert found.label[i] == ("inappropriate" if cosines[1] > cosines[0] else "appropriate")
    assert list(found.columns) == ["label", "probability", "wanted", "inappropriate"]
    assert (found.wanted == (found.label == "inappropriate")).all()
    np.testing.assert_allclose(found.probability, np.where(found.wanted, found.inappropriate, 1 - found.inappropriate))


def test_q16_answers_turn_with_the_prompts(clip, tmp_path):
    for name, both in (("one", tiny.q16_vectors()), ("other", tiny.q16_vectors().flip(0))):
        save_file({"prompts": both}, tmp_path / f"{name}.safetensors")
    images = pictures(4)
    one, other = (Q16(tmp_path / f"{n}.safetensors", clip).answers(images, cases(*"abcd")) for n in ("one", "other"))
    np.testing.assert_allclose(one.inappropriate, 1 - other.inappropriate, atol=1e-5)
    assert (one.wanted != other.wanted).all()


def test_q16_describes_itself(clip, prompts):
    found = json.loads(json.dumps(Q16(prompts, clip, threshold=0.9).describe()))
    assert found["sha256"] == files.sha256(clip / "model.safetensors") and found["threshold"] == 0.9
    assert found["prompts_sha256"] == files.sha256(prompts) and found["revision"] is None
    assert "/" not in found["model"]


def test_q16_bad_settings(clip, prompts, tmp_path):
    with pytest.raises(ValueError, match="threshold must be from 0.5"):
        Q16(prompts, clip, threshold=0.4)
    with pytest.raises(FileNotFoundError, match="prompts: there is no file .*convert"):
        Q16(tmp_path / "none.safetensors", clip)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="prompts: .*no safetensors file"):
        Q16(tmp_path / "text", clip)
    save_file({"prompts": tiny.q16_vectors(768)}, tmp_path / "wide")
    with pytest.raises(ValueError, match="prompts: .*width 768.*width 16"):
        Q16(tmp_path / "wide", clip)


@pytest.mark.parametrize("protocol", range(6))
def test_convert_reads_pickled_arrays(tmp_path, protocol):
    source, out = tmp_path / "prompts.p", tmp_path / "new" / "prompts.safetensors"
    array = tiny.q16_vectors(768).numpy().astype("f2")
    for data in (pickle.dumps(array, protocol), pickle.dumps(array, protocol).replace(b"numpy._core", b"numpy.core")):
        if protocol > 2 and b"numpy.core" in data and b"numpy._core" not in data:
            continue  # from protocol 4 on the name's length would have to change with it
        source.write_bytes(data)
        convert(source, out)
        assert torch.equal(load_file(out)["prompts"], torch.from_numpy(array).float())


def test_convert_reads_torch_files(tmp_path):
    for found in (tiny.q16_vectors(), torch.nn.Parameter(tiny.q16_vectors()), tiny.q16_vectors().half()):
        torch.save(found, tmp_path / "prompts.pt")
        convert(tmp_path / "prompts.pt", tmp_path / "out.safetensors")
        assert torch.equal(load_file(tmp_path / "out.safetensors")["prompts"], found.detach().float())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_convert_executes_nothing(tmp_path):
    source, out, trace = tmp_path / "prompts.p", tmp_path / "out.safetensors", tmp_path / "trace"
    bad = [Malicious(trace), np.array([[Malicious(trace)] * 16] * 2, dtype=object), {"a": Malicious(trace)}]
    for found in bad:
        for dump in (lambda x: source.write_bytes(pickle.dumps(x)), lambda x: torch.save(x, source)):
            dump(found)
            with pytest.raises(ValueError, match="prompts: .*not a pickled array and nothing else"):
                convert(source, out)
            assert not trace.exists() and not out.exists()
    function, arguments = Malicious(trace).__reduce__()
    function(*arguments)  # which is what unpickling would have done
    assert trace.exists()


def test_convert_refuses_other_arrays(tmp_path):
    source, out = tmp_path / "prompts.p", tmp_path / "out.safetensors"
    for found in (np.zeros((3, 16), "f4"), np.zeros(16, "f4"), np.zeros((2, 16), int), np.full((2, 16), np.nan), "no"):
        source.write_bytes(pickle.dumps(found))
        with pytest.raises(ValueError, match="^prompts: "):
            convert(source, out)
    with pytest.raises(FileNotFoundError, match="prompts"):
        convert(tmp_path / "none.p", out)
    assert not out.exists()
