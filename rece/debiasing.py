"""Debiasing: UCE's second form, which moves a concept until its pictures show attributes in the wanted proportions."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from rece import solver, texts
from rece.edits import check_unedited
from rece.eraser import Eraser, origin
from rece.images import generate


def debias(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    attributes: list[str],
    labels: Callable[[np.ndarray], Sequence[str]],
    *,
    desired: list[float] | None = None,
    preserve: list[str] | None = None,
    lamb: float = 0.5,
    edit_scale: float = 1.0,
    preserve_scale: float = 1.0,
    step_size: float = 1.0,
    max_diff: float = 0.05,
    max_iterations: int = 30,
    images: int = 10,
    steps: int = 20,
    guidance: float = 7.5,
    batch_size: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Eraser:
    """Compute the edit after which pictures of each concept show the attributes in the desired proportions.

    Each concept's last word token c is sent to c + sum_a alpha_a a, a being the attributes' last word tokens, by the
    one-token form of UCE. alpha starts at 0; in each iteration `images` pictures of every concept are drawn and
    labelled, and alpha_a grows by step_size * (desired - seen) of each attribute, until all are seen to within
    max_diff of what is desired. The pipeline is edited meanwhile and restored to the bit.

    concept: one text or several. attributes: texts, e.g. ["male", "female"]. labels: from uint8 images (n, height,
    width, 3) to n of the attributes, e.g. a zero-shot classifier. desired: a proportion per attribute, by default
    equal ones. preserve: texts whose last word tokens are kept. lamb, edit_scale, preserve_scale: of the edit.
    step_size: less than 1 if the shares oscillate.
    images, steps, guidance, batch_size: see `generate`; every iteration draws with new noise seeds from `seed` on.

    Returns an Eraser; its provenance has `alphas` and `seen` (iteration, concept, attribute) and whether it is
    `debiased`. Warns if max_iterations end without that. Computed in float64.
    Raises ValueError naming the parameter, before anything is drawn. Source: UCE (arXiv 2308.14761) and its code of
    2025, whose alphas accumulate too; there the noise is not seeded, and its step_size option is not used (so 1 here).
    """
    apart = ("pipe", "concept", "labels", "progress")
    settings = {name: value for name, value in locals().items() if name not in apart}
    concepts = texts.concepts_of(concept)
    attributes = texts.listed(attributes, "attributes")
    if len(attributes) < 2 or len(set(attributes)) < len(attributes):
        raise ValueError("attributes must be a list of two texts or more, each of them once")
    preserve = None if preserve is None else texts.listed(preserve, "preserve")
    wanted = np.full(len(attributes), 1 / len(attributes)) if desired is None else np.asarray(desired, float)
    if wanted.shape != (len(attributes),) or (wanted < 0).any() or not abs(wanted.sum() - 1) <= 1e-6:
        raise ValueError("desired must be one proportion per attribute, adding up to 1")
    solver.whole(max_iterations=max_iterations, images=images, steps=steps, batch_size=batch_size)
    solver.whole(least=0, most=2**63, seed=seed)
    solver.fraction(max_diff, "max_diff", or_zero=False)
    for name, value in {"lamb": lamb, "edit_scale": edit_scale, "step_size": step_size}.items():
        solver.positive(value, name)
    solver.positive(guidance, "guidance", or_zero=True)
    solver.flags(progress=progress)
    texts.check(pipe, concept=concepts, attributes=attributes, preserve=preserve or [])
    solver.positive(preserve_scale, "preserve_scale", or_zero=True)
    check_unedited(pipe)

    def word_rows(words: list[str]) -> torch.Tensor:
        embeds = texts.encode(pipe, words)
        rows = [E[texts.last_positions(pipe, word)] for E, word in zip(embeds, words, strict=True)]
        return torch.stack(rows, dim=1)  # (tokenizers, texts, d)

    K, A = word_rows(concepts), word_rows(attributes)
    PP = texts.encode_gram(pipe, preserve, last=True) if preserve else None
    alpha = torch.zeros(len(concepts), len(attributes), dtype=K.dtype, device=K.device)
    scales = dict(lamb=lamb, erase_scale=edit_scale, preserve_scale=preserve_scale)
    draw = dict(steps=steps, guidance=guidance, batch_size=batch_size, progress=False)
    alphas, seen = [], []
    for step in tqdm(range(max_iterations), desc="debias", delay=1, leave=False, disable=not progress):
        eraser = Eraser(solver.edit_map(K.flatten(0, 1), (K + alpha @ A).flatten(0, 1), PP, **scales))
        alphas.append(alpha.tolist())
        shares = []
        seeds = range(seed + step * images, seed + (step + 1) * images)
        with eraser.on(pipe):
            for text in concepts:
                found = list(labels(generate(pipe, [text] * images, seeds, **draw)))
                if len(found) != images or not set(found) <= set(attributes):
                    wrong = sorted(set(found))
                    raise ValueError(f"labels must return one of the attributes for each image, not {wrong}")
                shares.append([found.count(attribute) / images for attribute in attributes])
        seen.append(shares)
        lacking = wanted - np.array(shares)
        off = np.abs(lacking).max(axis=1) >= max_diff
        if not off.any():
            break
        alpha = alpha + step_size * torch.as_tensor(lacking * off[:, None]).to(alpha)
    else:
        warnings.warn(f"debias: not within max_diff {max_diff} after max_iterations {max_iterations}", stacklevel=2)
    eraser.provenance |= origin(pipe) | {"concepts": concepts} | settings | {"desired": wanted.tolist()}
    eraser.provenance |= {"alphas": alphas, "seen": seen, "debiased": not off.any()}
    return eraser
