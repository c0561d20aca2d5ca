"""Audits, one file each: what is left of a concept for someone who holds more than a prompt.

An attack of `rece.attacks` finds something to ask the model; an audit draws in another way, or changes the model. What
the attacker must hold grows from words to weights:

    holds                        attacks and audits
    words                        plain, synonym, paraphrase, misspelling, homoglyph; composition
    the text encoder             ring_a_bell, mma
    the model's pictures         query
    a picture of the concept     image_to_image, inpainting
    the sampler                  noise
    a way to feed embeddings     concept_vector
    the weights, to read         p4d_n, p4d_k, unlearndiff; and with embeddings inversion, reachable, closed_form; tina
    the original too             completion
    the weights, to change       adapter; relearning, see `rece.study.relearning`

Whoever holds an adapter or a hook can also take it off: then all is back, by construction.

Each file has HOLDS, that line's first column, and

audit(victim, original, prompts, seeds, *, generate, **settings) -> {level: pictures}
    victim: the pipeline with the edit applied. original: an untouched one. prompts: n texts that name the concept.
    seeds: n numbers. generate: steps, guidance, batch_size and bf16, as of `rece.images.generate`.
    level: how much was given to the attacker, as the file says. pictures: uint8 (n, height, width, 3).

They run on pipelines of the kind of Stable Diffusion 1 and 2. Both models are left as they were. The same seeds give
the same bits on one machine, whatever other prompts there are (`adapter` trains on all prompts, so there the company
counts).
"""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
from diffusers import DiffusionPipeline

from rece import families, solver


def names() -> list[str]:
    """The audits there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run(
    name: str,
    victim: DiffusionPipeline,
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    generate: dict,
    **settings,
) -> dict[str, np.ndarray]:
    """The pictures of the named audit by level, see above.

    Raises ValueError naming the parameter, TypeError if a pipeline is not of the kind of Stable Diffusion 1 and 2.
    """
    if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
        raise ValueError(f"seeds must be one number per prompt: {len(seeds)} seeds for {len(prompts)} prompts")
    if not {"steps", "guidance", "batch_size"} <= set(generate):
        raise ValueError(f"generate must hold steps, guidance and batch_size, not {', '.join(generate) or 'nothing'}")
    solver.whole(steps=generate["steps"], batch_size=generate["batch_size"])
    for pipe in (victim, original):
        families.check_tokens_alone(pipe)
    return _module(name).audit(victim, original, list(prompts), [int(s) for s in seeds], generate=generate, **settings)


def _module(name: str):
    if name not in names():
        raise ValueError(f"there is no audit {name!r}: choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
