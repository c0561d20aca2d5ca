"""The words of the emoji world: which concepts and styles exist and what captions call them."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

WORLD = Path(__file__).resolve().parents[2] / "data" / "concepts.yaml"


@dataclass(frozen=True)
class World:
    """Everything `data/concepts.yaml` says, by kind.

    `words` and `held_out` map a concept (object, category or style) to the words that occur in training captions and
    to those that never do; the first of `words` is the concept's name. `distant`: held-out words, by object, that even
    the sentence encoder places elsewhere. `members` maps a category to its objects.
    """

    emoji: dict[str, str]
    packages: dict[str, str]
    members: dict[str, list[str]]
    words: dict[str, list[str]]
    held_out: dict[str, list[str]]
    distant: dict[str, list[str]]

    @property
    def objects(self) -> list[str]:
        return list(self.emoji)

    @property
    def styles(self) -> list[str]:
        return list(self.packages)


def load(path: Path = WORLD, first: int | None = None) -> World:
    """Read the world, or its `first` objects only; raises ValueError if a held-out word also occurs in a caption."""
    tree = yaml.safe_load(Path(path).read_text())
    objects, categories, styles = tree["objects"], tree["categories"], tree["styles"]
    if first is not None:
        objects = dict(list(objects.items())[:first])
        categories = {name: row for name, row in categories.items() if set(row[0]) <= set(objects)}
    everything = {**objects, **categories, **styles}
    world = World(
        emoji={name: row[0] for name, row in objects.items()},
        packages={name: row[0] for name, row in styles.items()},
        members={name: row[0] for name, row in categories.items()},
        words={name: row[1] for name, row in everything.items()},
        held_out={name: row[2] for name, row in everything.items()},
        distant={name: row[3] for name, row in objects.items()},
    )
    captions = [f" {word} " for words in world.words.values() for word in words]
    for table in (world.held_out, world.distant):
        for word in (word for words in table.values() for word in words):
            if any(f" {word} " in caption for caption in captions):
                raise ValueError(f"{path}: held-out words must not occur in captions, but {word!r} does")
    return world


def article(word: str) -> str:
    """`word` with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


STYLED = ["{a} in {style} style", "{style} style {name}", "{a}, {style}", "a {style} emoji of {a}"]
BARE = ["{name}", "{a}", "an emoji of {a}", "a picture of {a}"]


def prompt(name: str, style: str | None = None) -> str:
    """The plain prompt of an object word, in a style if one is named: "a dog in twemoji style"."""
    return STYLED[0].format(a=article(name), style=style) if style else BARE[1].format(a=article(name))


def caption(world: World, obj: str, style: str, random: Random) -> str:
    """One random training caption of an image: any of the object's words (in 4 % its category's), mostly with a
    style."""
    words = world.words[obj]
    name = words[0] if random.random() < 0.4 else random.choice(words)
    categories = [category for category, members in world.members.items() if obj in members]
    if categories and random.random() < 0.04 * len(categories):
        name = random.choice(world.words[random.choice(categories)])
    style_word = random.choice(world.words[style])
    if random.random() < 0.05:
        return f"{style_word} style"
    templates = STYLED if random.random() < 0.75 else BARE
    return random.choice(templates).format(name=name, a=article(name), style=style_word)


def captions(world: World, obj: str, style: str, n: int, seed: int) -> list[str]:
    """`n` seeded random captions of one image (see `caption`)."""
    random = Random(f"{seed} {obj} {style}")
    return [caption(world, obj, style, random) for _ in range(n)]
