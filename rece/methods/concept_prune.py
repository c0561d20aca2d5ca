"""ConceptPrune: the entries of feed-forward layers that fire for the concept become zero (Chavhan et al., ICLR 2025,
arXiv 2405.19237).

Not reproduced: the published lists of scenes; prompts are templates around the concept, and around its target for
comparison. The sampler is the pipeline's own.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, solver, texts
from rece.edits import Weights
from rece.eraser import origin
from rece.methods._tokens import check_templates
from rece.methods._watching import watched

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {} in a street", "a {} on a table", "a small {}")


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    ratio: float = 0.02,
    first: float = 0.2,
    templates: tuple[str, ...] = TEMPLATES,
    steps: int = 50,
    guidance: float = 7.5,
    seed: int = 0,
    bf16: bool | str = False,
    progress: bool = True,
) -> Weights:
    """Set weights of the second linear layer of every feed-forward block to zero.

    A weight's score at a step is its size times the norm of its input over all tokens, each scaled to length one. In
    each row the `ratio` of largest scores for the concept are chosen, where they are larger than for the target; and
    in all of the first steps, a share `first` of them, together. Several concepts: all of their choices.
    preserve is not used. Raises ValueError naming the parameter, TypeError if there is no UNet.
    """
    concepts = texts.concepts_of(concept)
    targets = texts.targets_of(target, concepts)
    for name, value in {"ratio": ratio, "first": first}.items():
        solver.fraction(value, name, or_zero=False)
    check_templates(templates)
    if families.part(pipe) != "unet":
        raise TypeError("pipe must have a UNet")
    how = {"steps": steps, "guidance": guidance, "bf16": bf16, "progress": progress}
    layers = {name: layer for name, layer in pipe.unet.named_modules() if name.endswith("ff.net.2")}
    if not layers:
        raise ValueError("pipe.unet has no feed-forward block of the kind that this method prunes")
    chosen = {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}
    for asked, other in zip(concepts, targets, strict=True):
        norms = [
            fired(pipe, layers, [template.format(text) for template in templates], seed, **how)
            for text in (asked, other)
        ]
        for name, layer in layers.items():
            for step in range(max(1, round(first * len(norms[0][name])))):
                of_concept, of_target = (layer.weight.detach().abs() * norm[name][step] for norm in norms)
                chosen[name] |= best(of_concept, ratio) & (of_concept > of_target)
    indices = {name: mask.flatten().nonzero().flatten().to("cpu", torch.int32) for name, mask in chosen.items()}
    numbers = {"ratio": ratio, "first": first, "steps": steps, "guidance": guidance, "seed": seed, "bf16": bf16}
    provenance = {**origin(pipe), "method": "concept_prune", "concepts": concepts, "target": targets, **numbers}
    provenance |= {"templates": list(templates), "evaluations": 4 * steps * len(templates) * len(concepts)}
    return Weights({f"unet.{name}.weight": some for name, some in indices.items()}, provenance)


def best(scores: Tensor, ratio: float) -> Tensor:
    """Where the largest scores of each row are, `ratio` of them: bool, the shape of scores."""
    k = max(1, round(ratio * scores.shape[1]))
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, 1).indices, True)


def fired(pipe: DiffusionPipeline, layers: dict, prompts: list[str], seed: int, **how) -> dict[str, list[Tensor]]:
    """The norm of each input number of the layers, over all tokens scaled to length one: by name, one (in,) per step.

    All pictures begin with the same noise.
    """

    def norms(read: Tensor, _) -> Tensor:
        return torch.nn.functional.normalize(read.float().flatten(0, -2), dim=1).norm(dim=0)

    return watched(pipe, layers, prompts, [seed] * len(prompts), norms, **how)
