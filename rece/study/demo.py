"""`make demo`: one concept erased from the embedded model, and a picture of it, in half a minute."""

from pathlib import Path

import rece
from rece.emoji import world as worlds
from rece.images import generate
from rece.study import config, figures

OUT = "results/demo.png"


def demo(concept: str = "dog", other: str = "cat", out: str | Path = OUT) -> Path:
    """Erase the concept by the study's RECE, draw it and another one before and after, and return the picture's path.

    out: where the picture goes, relative to the checkout. The rows share prompts and noise seeds.
    """
    params, world = config.params(), worlds.load()
    pipe = config.load(params["model"])
    styles = [world.words[style][0] for style in world.styles]
    prompts = [worlds.prompt(name, style) for name in (concept, other) for style in styles]

    def draw() -> dict:
        images = generate(pipe, prompts, range(len(prompts)), steps=10, guidance=4.0, batch_size=len(prompts))
        return dict(zip((concept, other), (images[: len(styles)], images[len(styles) :]), strict=True))

    before = draw()
    eraser = rece.erase(pipe, concept, **params["erase"]["rece"])
    eraser.apply(pipe)
    after = draw()
    rows = {f"{name}: {when}": some[name] for name in (concept, other) for when, some in
            ((f"before erasing {concept}", before), (f"after erasing {concept}", after))}  # fmt: skip
    out = config.root() / out
    figures.save(figures.rows(rows), out)
    return out


if __name__ == "__main__":
    print("Erasing the dog from a small model that is in this repository …", flush=True)
    print(f"Before and after: {demo()}")
