"""Model cards: what they say was erased, how, and what is not known; text of files stays text."""

import ast
import re
from importlib import metadata

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

import rece
from rece.sharing.card import FILES, card


def test_a_card_says_what_was_erased_how_and_what_is_not_known(pipe):
    eraser = rece.erase(pipe, ["dog", "a | `cat`"], target=[" ", "animal"], preserve=[f"p{n}" for n in range(30)])
    text = card(eraser, base_model="owner/name", licence="creativeml-openrail-m")
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.license) == ("diffusers", "owner/name", "creativeml-openrail-m")
    assert data.tags == ["text-to-image", "concept-erasure", "lora"] and data.pipeline_tag == "text-to-image"
    assert '`"dog"` (now `" "`), `"a \\| \'cat\'"` (now `"animal"`), by UCE and 3 rounds of RECE' in text
    for name in set(eraser.provenance) - {"versions"}:
        assert f"| {name} |" in text
    assert "p19 … 30 in all" in text and "p20" not in text
    assert text.count("Not measured.") == 3
    assert "Not measured: the certificate, success of attacks, other concepts, image quality." in text
    assert "no safety mechanism" in text and "invertible" in text
    assert f"| torch | {metadata.version('torch')} |" in text
    assert f"has the edit's own rank, {eraser.rank}," in text
    cut = card(eraser, base_model="owner/name", licence=None, rank=3)
    assert f"cut to rank 3 of {eraser.rank} and lacks {eraser.loss(3):.1%}" in cut
    assert ModelCard(cut).data.license is None and "No licence is stated" in cut
    pipeline = card(eraser, base_model="local", licence=None, kind="pipeline")
    eraser.provenance["revision"] = "0" * 40
    pinned = f'from_pretrained("owner/name", revision="{"0" * 40}")'
    assert pinned in card(eraser, base_model="owner/name", licence=None) and pinned not in text
    assert "lora" not in ModelCard(pipeline).data.tags and ModelCard(pipeline).data.base_model is None


def test_a_card_shows_certificates_and_attack_rates(pipe):
    eraser = rece.erase(pipe, "dog")
    results = pd.DataFrame(
        {
            "attack": ["UnlearnDiffAtk"],
            "judge": ["NudeNet 3.4.2"],
            "n": [142],
            "rate": [0.5],
            "low": [0.4],
            "high": [0.6],
        }
    )
    certificate = rece.certify(pipe, eraser, "dog", others=["cat", "sun"])
    text = card(eraser, base_model="a/b", licence=None, certificate=certificate, results=results)
    (word,) = certificate.words.itertuples()
    share, other = f"{word.distance / word.target:.2f}", f'{word.other:.4g} (`"{word.nearest}"`)'
    assert f'| `"dog"` | {word.distance:.4g} | {share} | {other} |' in text
    assert ("No prompt comes as close" in text) == certificate.passed
    assert '| UnlearnDiffAtk | `"NudeNet 3.4.2"` | 142 | 0.50 | 0.40 to 0.60 |' in text
    assert text.count("Not measured.") == 1 and "Not measured: other concepts, image quality." in text
    alone = card(eraser, base_model="a/b", licence=None, certificate=rece.certify(pipe, eraser, "dog"))
    assert "| not compared |" in alone and "It was not compared with other concepts." in alone


def test_cards_of_composed_recovered_and_unknown_erasers(pipe):
    dog, cat = rece.erase(pipe, "dog", rounds=0), rece.erase(pipe, "cat", rounds=1, anchored=True)
    text = card(dog @ cat, base_model="a/b", licence=None, kind="eraser")
    assert "# a/b without dog, cat\n" in text and text.count("| setting | value |") == 2
    assert 'Erased `"dog"` (now `" "`), by UCE.' in text and "by UCE and 1 anchored rounds of RECE." in text
    found = rece.Eraser(torch.eye(4), {"recovered": {"file": "uce.pt", "residual": 0.0123}})
    assert 'What `"uce.pt"` erases' in card(found, base_model="a/b", licence=None, kind="eraser")
    unknown = card(rece.Eraser(torch.eye(4)), base_model="a/b", licence=None, kind="eraser")
    assert "# a/b, edited\n" in unknown and "concepts that the file does not name" in unknown
    balanced = rece.Eraser(torch.eye(4), {"concepts": ["doctor"], "attributes": ["woman", "man"]})
    assert '"doctor"`, balanced over `"woman"`, `"man"`.' in card(balanced, base_model="a/b", licence=None)


HOSTILE = (
    '<img src=x onerror=alert(1)> [a](javascript:b) `c` | \n```\n"); import os; os.system("id") # \x1b[31m \u202e'
)


def test_text_of_a_file_stays_text_in_a_card():
    provenance = {
        "concepts": [HOSTILE],
        "target": [HOSTILE],
        "base_model": HOSTILE,
        "revision": HOSTILE,
        HOSTILE: {HOSTILE: [HOSTILE]},
        "rounds": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
    }
    texts = [card(rece.Eraser(torch.eye(4), provenance), kind=kind) for kind in FILES]
    others = {"recovered": {"file": HOSTILE, "residual": 0.1}}, {"concepts": [HOSTILE], "attributes": [HOSTILE] * 2}
    for text in texts + [card(rece.Eraser(torch.eye(4), other), base_model=HOSTILE) for other in others]:
        assert "\x1b" not in text and "\u202e" not in text
        (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert not any(
            isinstance(node, ast.Import) and node.names[0].name == "os" for node in ast.walk(ast.parse(code))
        )
        rest = text.replace(code, "")
        assert rest.count("```") == 2
        assert not re.search(r"<img|\(javascript", re.sub(r"`[^`\n]*`", "", rest))
        for line in rest.splitlines():
            assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize(
    "provenance",
    [{"versions": [1]}, {"recovered": {}}, {"target": ["a"]}, {"composed": 5}, {"composed": [5]}, {"base_model": 5}],
)
def test_a_damaged_provenance_is_one_line(provenance):
    with pytest.raises(ValueError, match="provenance is not of the form|base_model must be") as error:
        card(rece.Eraser(torch.eye(4), provenance))
    assert "\n" not in str(error.value)


def test_a_card_asks_for_the_path_of_a_local_base_model(pipe):
    text = card(rece.erase(pipe, "dog", rounds=0), base_model="tiny-model")
    assert (
        "with the path of the base model's folder in place of" in text
        and 'from_pretrained("path/to/tiny-model")' in text
    )
    assert "path/to" not in card(rece.Eraser(torch.eye(4)), base_model="owner/name")
