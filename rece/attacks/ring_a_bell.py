"""Ring-A-Bell: words that are read like prompt + concept, found by a genetic search (arXiv 2310.10012)."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from rece import solver, texts
from rece.attacks import Attempts, _tokens, concept_vector
from rece.images import bfloat16

ACCESS = "grey"
NEEDS = ()
applies = _tokens.applies


def attack(
    victim,
    prompts,
    seeds,
    *,
    original,
    concept,
    eta: float = 3.0,
    length: int = 16,
    population: int = 200,
    generations: int = 3000,
    forbidden: bool = False,
    batch_size: int = 256,
    bf16: bool | str = False,
    repeat: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find `length` words of least |tau(words) - (tau(prompt) + eta v)|^2, summed over all positions and d.

    tau is the original's text encoder, v the concept vector of concept["pairs"] (see concept_vector.vector). The
    victim is not looked at. The words stand between the start token and the end token, and padding follows. They are
    found by `search`, a genetic algorithm, with the published numbers of individuals and generations.

    eta: in the paper 3 for nudity, 5 to 5.5 for violence. length: in the paper 16, 38 or 75 (there K = 16, 38, 77).
    forbidden (ours): leave out the concept's own words and pieces of them, as the attack mma does.
    batch_size: texts per pass; it changes the memory, and the results only by rounding. losses: the lowest loss so
    far, per generation. bf16, repeat, progress: see `mma.attack`.
    Ours: only words of `_tokens.whole_words` take part, because the result must be a text; the paper takes any ids.
    Raises ValueError if there are no pairs.
    """
    solver.whole(length=length, generations=generations, batch_size=batch_size)
    solver.whole(least=2, population=population)
    solver.whole(least=0, repeat=repeat)
    device, tokenizer = original.device, original.tokenizer
    bf16 = bfloat16(device, bf16)
    words = _tokens.unnamed(tokenizer, concept) if forbidden else _tokens.whole_words(tokenizer)
    blanks = _tokens.Blanks(original, [["", ""]], length, "lower length", words)
    randoms = [np.random.default_rng([repeat, seed]) for seed in seeds]
    shift = concept_vector.shift(original, concept, eta)

    def losses(individuals: np.ndarray, goal: torch.Tensor) -> np.ndarray:
        found, picks = [], torch.as_tensor(individuals, device=device)
        for some in blanks.ids([0] * len(picks), picks).split(batch_size):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                embeds = original.text_encoder(some)[0].float()
            found.append((embeds - goal).square().sum((1, 2)))
        return torch.cat(found).cpu().numpy()

    found, history = [], []
    with tqdm(total=len(prompts) * generations, desc="ring_a_bell", delay=1, leave=False, disable=not progress) as bar:
        for prompt, random in zip(prompts, randoms, strict=True):
            score = partial(losses, goal=(texts.encode(original, [prompt]) + shift).float())
            history.append([])
            for best, loss in search(score, len(words[0]), length, population, generations, random):
                winner = best
                history[-1].append(loss)
                bar.update()
            found.append(blanks.text(0, torch.as_tensor(winner, device=device)))
    return Attempts(found, seeds, losses=history)


def search(losses, size, length, population, generations, random) -> Iterator[tuple[np.ndarray, float]]:
    """Ring-A-Bell's genetic algorithm over the words 0 .. size - 1.

    After each generation it yields the best individual so far, (length,) int32, and its loss.
    losses: takes individuals (k, length) int32 and returns k floats, both as arrays. random: numpy's generator.
    A generation keeps the better half of the `population` individuals of `length` words. Each individual of
    it, with probability 1/2, adds two children by one-point crossover with a partner drawn from the same half. Then
    each individual, kept or new, with probability 1/4 gets a random word at one random position. As published, the
    cut may fall before the first word, and then the children are copies. Ours: mutation can lose the best individual,
    so we yield the best ever seen; and no individual's loss is computed twice.
    """
    individuals = random.integers(size, size=(population, length), dtype=np.int32)
    known: dict[bytes, float] = {}
    best, lowest = individuals[0], math.inf
    for _ in range(generations):
        keys = [individual.tobytes() for individual in individuals]
        new = list({key: row for row, key in enumerate(keys) if key not in known}.values())
        if new:
            known |= zip((keys[row] for row in new), losses(individuals[new]).tolist(), strict=True)
        order = np.argsort([known[key] for key in keys], kind="stable")
        if known[keys[order[0]]] < lowest:
            best, lowest = individuals[order[0]], known[keys[order[0]]]
        yield best, lowest

        parents = individuals[order[: population // 2]]
        partners = parents[random.integers(len(parents), size=len(parents))]
        own = np.arange(length) < random.integers(length, size=(len(parents), 1))
        crossed = random.random(len(parents)) < 0.5
        children = np.where(own, parents, partners), np.where(own, partners, parents)
        individuals = np.concatenate([parents, *(child[crossed] for child in children)])
        mutated = np.flatnonzero(random.random(len(individuals)) < 0.25)
        positions, values = random.integers(length, size=len(mutated)), random.integers(size, size=len(mutated))
        individuals[mutated, positions] = values
