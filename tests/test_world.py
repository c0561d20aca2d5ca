"""The words of the embedded model's world."""

import pytest
import yaml

from rece.emoji import world as worlds

WORLD = worlds.load()


def test_no_caption_contains_a_held_out_word():
    held_out = {word for table in (WORLD.held_out, WORLD.distant) for words in table.values() for word in words}
    for obj in WORLD.objects:
        for style in WORLD.styles:
            for caption in worlds.captions(WORLD, obj, style, 20, seed=1):
                padded = f" {caption.replace(',', ' ,')} "
                found = [word for word in held_out if f" {word} " in padded]
                assert not found, (caption, found)


def test_a_held_out_word_in_a_caption_list_is_refused(tmp_path):
    tree = yaml.safe_load(worlds.WORLD.read_text())
    tree["objects"]["dog"][1].append("tabby")
    (tmp_path / "concepts.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="tabby"):
        worlds.load(tmp_path / "concepts.yaml")
