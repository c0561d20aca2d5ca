"""One edit of one concept, evaluated: attacks, what is kept, the certificate, and the card that says so."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from pictures import cases, pictures
from PIL import Image
from project import ROOT
from transformers import CLIPImageProcessor, CLIPModel

import rece
from rece import judges
from rece.__main__ import main
from rece.judges.clip import Clip
from rece.study import config
from rece.study.evaluating import NEIGHBOURS, QUICK, Evaluation, _templates, evaluate

DRAW = {"steps": 10, "guidance": 4.0, "batch_size": 20}
CHEAP = {name: QUICK[name] for name in ("plain", "synonym", "closed_form")}


@pytest.fixture(scope="module")
def emoji():
    return config.load("data/emoji-diffusion")


@pytest.fixture(scope="module")
def judge():
    return judges.load("data/judge", ROOT)


def test_what_is_left_and_kept_of_the_embedded_model(emoji, judge, tmp_path):
    eraser = rece.guard(emoji, "dog", progress=False)
    before = {name: weight.clone() for name, weight in emoji.unet.state_dict().items()}
    given = {"others": ["cat", "bus"], "synonyms": ["puppy"], "seeds": range(2), "budgets": CHEAP}
    found = evaluate(emoji, eraser, "dog", judge, **given, **DRAW)
    assert all(torch.equal(weight, before[name]) for name, weight in emoji.unet.state_dict().items())
    rates = found.results.set_index("attack")
    assert list(rates.index) == ["plain", "synonym", "closed_form"] and (rates.rate <= 0.2).all()
    assert (rates.n == 10).all() and (rates.low <= rates.rate).all() and (rates.rate <= rates.high).all()
    assert list(found.kept.text) == ["cat", "bus"] and found.kept.near.all() and (found.kept.after >= 0.6).all()
    assert found.certificate.words.concept.tolist() == ["dog"] and found.certificate.guarded > 0.5
    found.save(tmp_path / "dog.json")
    again = Evaluation.load(tmp_path / "dog.json")
    pd.testing.assert_frame_equal(again.results, found.results, check_dtype=False)
    assert again.certificate.guarded == pytest.approx(found.certificate.guarded)


def test_an_edit_that_does_nothing_leaves_all(emoji, judge):
    nothing = rece.Eraser(torch.eye(256).double(), {"concepts": ["dog"], "target": [" "]})
    given = {"templates": ["a {} in noto style"], "seeds": range(3), "budgets": {"plain": {}}}
    found = evaluate(emoji, nothing, "dog", judge, **given, **DRAW)
    assert found.results.rate.item() > 0.8 and (found.kept.before == found.kept.after).all()
    assert found.kept.near.sum() == NEIGHBOURS and len(found.kept) == 20 and "dog" not in set(found.kept.text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concept": "dgo"}, "the judge knows no 'dgo', but .*dog"),
        ({"others": ["cat", "sofa"]}, "the judge knows no 'sofa'"),
        ({"templates": ["a picture"]}, "templates must be texts, each with one {}"),
        ({"seeds": []}, "seeds must be one number or more"),
        ({"budgets": {"nosuch": {}}}, "attacks: there is no 'nosuch'"),
        ({"synonyms": ["<|endoftext|>"]}, "synonyms: .* a special token"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(emoji, judge, given, message, monkeypatch):
    monkeypatch.setattr("rece.study.evaluating.generate", lambda *_, **__: pytest.fail("drew first"))
    nothing = rece.Eraser(torch.eye(256).double())
    with pytest.raises(ValueError, match=message):
        evaluate(emoji, nothing, **{"concept": "dog", "judge": judge} | given)


def test_the_command_keeps_what_the_card_then_says(tmp_path, capsys):
    eraser, kept = tmp_path / "dog.safetensors", tmp_path / "dog.json"
    model = str(ROOT / "data/emoji-diffusion")
    rece.guard(config.load(model), "dog", preserve=["cat", "bus"], progress=False).save(eraser)
    asked = [
        "evaluate",
        model,
        str(eraser),
        "dog",
        "--judge",
        str(ROOT / "data/judge"),
        "--attacks",
        "plain",
        "closed_form",
    ]
    asked += ["--others", "cat", "--steps", "10", "--guidance", "4", "--batch-size", "20", "-o", str(kept)]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "nearest others: drawn" in out and "certificate: no embedding comes nearer to the concept than 0." in out
    assert main(["lora", model, str(eraser), "-o", str(tmp_path / "lora"), "--evaluation", str(kept)]) == 0
    card = (tmp_path / "lora" / "README.md").read_text(encoding="utf-8")
    assert "Not measured." not in card and "- Not measured: image quality." in card
    assert "| plain | quick | embedded |" in card and '| `"cat"` | 5 |' in card
    other = tmp_path / "cat.safetensors"
    assert main(["erase", model, "cat", "--rounds", "0", "-o", str(other)]) == 0
    assert main(["lora", model, str(other), "-o", str(tmp_path / "cat"), "--evaluation", str(kept)]) == 1
    assert "dog.json measured another eraser: run rece evaluate on this one" in capsys.readouterr().err
    kept.write_text("{}", encoding="utf-8")
    assert main(["lora", model, str(eraser), "-o", str(tmp_path / "other"), "--evaluation", str(kept)]) == 1
    assert "is no file of rece evaluate" in capsys.readouterr().err and not (tmp_path / "other").exists()


@torch.no_grad()
def test_clip_names_the_likeliest_of_its_labels(tmp_path):
    folder, images, labels = tiny.clip(tmp_path), pictures(4), ["dog", "cat", "sun"]
    judge = Clip(labels, folder, template="a {}", batch_size=3)
    found = judge.answers(images, cases("dog", "cat", "sun", "dog"))
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)
    tokens = tiny.tokenizer()([f"a {label}" for label in labels], padding=True, return_tensors="pt")
    for n, image in enumerate(images):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
        chance = model(**tokens, pixel_values=pixels).logits_per_image.softmax(-1)[0].numpy()
        assert found.label[n] == labels[chance.argmax()]
        np.testing.assert_allclose(found.probability[n], chance.max(), atol=1e-5)
        assert found.wanted[n] == (found.label[n] == ["dog", "cat", "sun", "dog"][n])
    assert json.loads(json.dumps(judge.describe()))["labels"] == labels
    with pytest.raises(ValueError, match="the label 'moon' is none of dog, cat, sun"):
        judge.answers(images[:1], cases("moon"))
    for wrong in ("dog", ["dog"], ["dog", "dog"]):
        with pytest.raises(ValueError, match="labels must be two names or more"):
            Clip(wrong, folder)


def test_a_style_is_asked_of_few_objects_where_there_are_few():
    assert _templates(SimpleNamespace(objects=["dog", "cat"], styles=["noto"]), "noto") == [
        "a dog in {} style",
        "a cat in {} style",
    ]
