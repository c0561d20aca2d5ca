"""The laboratory of the lessons: a small model, a judge, and one call that draws and counts.

Nothing else in `rece` imports it. `rece.course.checks` has the checks of the exercises, `rece.course.pictures` the
lessons' figures, `rece.course.student` makes the files that students get, `rece.course.doctor` looks at a machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import loading
from rece.emoji import world as worlds
from rece.emoji.world import World
from rece.images import generate
from rece.judges.embedded import Judge
from rece.study import config, fair, statistics


@dataclass
class Asked:
    """Pictures of something that was asked for, and what the judge says about them.

    name: what was asked for. images: uint8 (n, height, width, 3). p: the judge's probability of it, (n,). hits: (n,)
    bool, whether it is the judge's first answer.
    """

    name: str
    images: np.ndarray
    p: np.ndarray
    hits: np.ndarray

    @property
    def n(self) -> int:
        return len(self.hits)

    @property
    def k(self) -> int:
        """How many show it."""
        return int(self.hits.sum())

    @property
    def rate(self) -> float:
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the rate."""
        return statistics.wilson(self.k, self.n)

    def __repr__(self) -> str:
        low, high = self.interval
        return f"{self.name}: {self.k} of {self.n} (95 %: {low:.2f} to {high:.2f})"


@dataclass
class Lab:
    """A model, the judge, and the words of its world."""

    pipe: DiffusionPipeline
    judge: Judge
    world: World

    def prompts(self, word: str, n: int = 20) -> list[str]:
        """n prompts for a word, in the world's styles by turns: "a church in noto style"."""
        styles = self.world.styles
        return [worlds.prompt(word, styles[i % len(styles)]) for i in range(n)]

    def draw(
        self,
        prompts: list[str] | None = None,
        *,
        embeds: Tensor | None = None,
        seed: int = 0,
        pipe: DiffusionPipeline | None = None,
    ) -> np.ndarray:
        """Pictures of prompts, or of embeddings (n, positions, d): uint8 (n, 64, 64, 3).

        seed: of the first picture's noise; the others follow. pipe: another model than the lab's.
        """
        n = len(prompts if embeds is None else embeds)
        how = config.params()["generate"] | {"progress": False}
        embeds = None if embeds is None else embeds.float()
        return generate(pipe or self.pipe, prompts, range(seed, seed + n), embeds=embeds, **how)

    def ask(
        self,
        name: str | list[str],
        n: int = 20,
        *,
        prompts: list[str] | None = None,
        embeds: Tensor | None = None,
        seed: int = 0,
        pipe: DiffusionPipeline | None = None,
    ) -> Asked:
        """Draw and judge: how many pictures show `name`, an object of the world, or several by turns?

        By default n pictures of plain prompts, see `prompts`; else of the prompts or embeddings that are given.
        """
        names = [name] if isinstance(name, str) else list(name)
        for one in names:
            if one not in self.world.objects:
                raise ValueError(f"name must be one of the world's objects, such as church or dog, not {one!r}")
        if prompts is None and embeds is None:
            styled = [self.prompts(self.world.words[one][0], n) for one in names]
            prompts = [styled[i % len(names)][i // len(names)] for i in range(n)]
        images = self.draw(prompts, embeds=embeds, seed=seed, pipe=pipe)
        return Asked(" or ".join(names), images, *self.judged(images, names))

    def judged(self, images: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What the judge says of pictures that were asked for these names by turns: p and hits, see `Asked`."""
        objects = self.judge.classify(images).objects
        at = np.array([self.judge.objects.index(names[i % len(names)]) for i in range(len(images))])
        return objects[range(len(at)), at], objects.argmax(1) == at

    def neighbours(self, name: str, n: int = 5) -> list[str]:
        """The n objects whose names the attention layers answer nearest to that of `name`, the nearest first."""
        return fair.neighbours(self.pipe, self.world, {"kind": "object", "erase": [name]})[:n]

    def predict(self, question: str, answer: float) -> float | None:
        """Write down what you expect before you look, and return it. A picture shows it as an open circle.

        Returns None as long as there is no answer.
        """
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            print(f"not predicted yet: {question}")
            return None
        print(f"you predict {answer:g}: {question}")
        return float(answer)


def open(model: str = "data/emoji-diffusion", judge: str = "data/judge") -> Lab:
    """The lab with Emoji Diffusion and its judge, both in the checkout. It takes some seconds and no network."""
    loading.quiet()
    return Lab(config.load(model), Judge.load(config.root() / judge), worlds.load())
