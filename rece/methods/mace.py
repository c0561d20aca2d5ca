"""MACE: a closed form takes the concept out of the words around it, and a small LoRA per concept takes it out of the
picture (Lu et al., CVPR 2024, arXiv 2403.06135).

Not reproduced: masks by Grounded-SAM; here they come from the original's own attention, see `where`. The thirty
prompts around each concept are a few templates. The cached COCO captions are `preserve`, and the list of a domain is
left out. The words before the concept are left out of the closed form. LoRA's loss and its mask take only the last
token of the concept.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from rece import layers, solver, texts
from rece.edits import Weights
from rece.methods._tokens import check_templates, last_in
from rece.methods._training import Pupil, Training
from rece.methods._watching import attention, where

SETTINGS = Training(iterations=50, lr=1e-5, guidance=7.5)
TEMPLATES = ("a photo of the {}", "a picture of a {}", "{} in the street", "a {} on a table", "a drawing of the {}")


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    lamb: float = 1000.0,
    prior: float = 0.0,
    pictures: int = 8,
    templates: tuple[str, ...] = TEMPLATES,
    **training,
) -> Weights:
    """Edit the keys and values in three steps: `solver.edit_map` (equation 3), `forgotten` and `fused`.

    lamb: of the first and the last step, how strongly weights stay. prior: the weight of preserved tokens there.
    pictures: of each concept, by the original, that the LoRAs learn from. training: see `Training`; iterations are
    those of each concept. A checkpoint is one file per concept. A killed run
    repeats concepts that were finished.
    """
    settings = replace(SETTINGS, **training)
    pupil = Pupil(pipe, concept, settings)
    solver.positive(lamb, "lamb")
    solver.positive(prior, "prior", or_zero=True)
    solver.whole(pictures=pictures)
    check_templates(templates)
    targets = texts.targets_of(target, pupil.concepts)
    PP = prior * texts.encode_gram(pipe, preserve, progress=False) if preserve and prior else None
    around = [rows_of(pipe, name, aim, templates) for name, aim in zip(pupil.concepts, targets, strict=True)]
    device = layers.gram(pipe).device
    E, F = (torch.cat([pair[n] for pair in around]).to(device) for n in (0, 1))
    M = solver.edit_map(E, F, PP, lamb=lamb)
    weights = {name: solver.precise(W) for name, W in layers.originals(pipe).items()}
    first = {name: (W @ M).float() for name, W in weights.items()}
    numbers = {"target": targets, "preserve": preserve, "lamb": lamb, "prior": prior, "pictures": pictures}
    numbers |= {"templates": list(templates)}
    loras, spent = [], 0
    for n, name in enumerate(pupil.concepts):
        path = None if settings.checkpoint is None else f"{settings.checkpoint}.{n}"
        one = Pupil(pipe, name, replace(settings, checkpoint=path))
        loras.append(forgotten(one, first, numbers))
        spent += one.evaluations
    Cs = [texts.encode(pipe, [t.format(name) for t in templates]).flatten(0, 1).to(device) for name in pupil.concepts]
    found = fused(loras, Cs, PP, lamb)
    changes = {f"unet.{name}.weight": (W @ M - W + solver.precise(found[name])).float() for name, W in weights.items()}
    pupil.evaluations = spent
    return Weights(changes, pupil.provenance("mace", **numbers))


def rows_of(pipe: DiffusionPipeline, concept: str, target: str, templates) -> tuple[Tensor, Tensor]:
    """The tokens after the concept in each template, and those after its target in the same one: (n, d) each.

    The tokens before are the same for both.
    """
    E, F = [], []
    for template in templates:
        asked, aim = (template.format(text) for text in (concept, target))
        C, T = texts.encode(pipe, [asked, aim])
        i, j = (last_in(pipe, template, text) + 1 for text in (concept, target))
        n = min(len(C) - i, len(T) - j)
        E.append(C[i : i + n])
        F.append(T[j : j + n])
    return torch.cat(E), torch.cat(F)


def forgotten(pupil: Pupil, weights: dict[str, Tensor], numbers: dict) -> dict:
    """A LoRA of rank one for each layer's weights, (out, 1) and (1, d): with it the layers attn2 look less at the
    concept's last word and at the end of the prompt, where the original sees the concept (equation 5)."""
    pipe, unet, (name,) = pupil.pipe, pupil.copied("unet"), pupil.concepts
    templates, pictures = numbers["templates"], numbers["pictures"]
    asked = [template.format(name) for template in templates]
    c, words = pupil.encode(asked), [last_in(pipe, template, name) for template in templates]
    ends = [texts.last_position(pipe, text) + 1 for text in asked]
    drawn = pupil.pictures(asked, pictures)
    random, loras = torch.Generator().manual_seed(pupil.settings.seed), {}
    for layer, W in weights.items():
        down = torch.randn(1, W.shape[1], generator=random) / W.shape[1] ** 0.5
        loras[layer] = [torch.zeros(len(W), 1, device=W.device), down.to(W.device)]
        for n, side in enumerate(loras[layer]):
            pupil.learnt[f"{layer}.{n}"] = side.requires_grad_()
    times = torch.arange(pupil.horizon).float() * 1000 / pupil.horizon
    often = (0.05 * (times - 200)).sigmoid() - (0.05 * (times - 400)).sigmoid()

    def loss(random: torch.Generator) -> Tensor:
        row = int(torch.randint(pictures, (), generator=random))
        k, z = row % len(asked), drawn[row : row + 1]
        time = torch.multinomial(often.clamp(min=1e-6), 1, generator=random).to(pupil.device)
        z = pupil.scheduler.add_noise(z, torch.randn(z.shape, generator=random).to(z), time)
        read, looked = c[k : k + 1], range(words[k], words[k] + 1)
        seen = where(attention(pipe.unet, lambda: pupil.original(z, time, read)), looked, z.shape[-1])
        changed = {f"{layer}.weight": weights[layer] + up @ down for layer, (up, down) in loras.items()}

        def with_loras(z, times, encoder_hidden_states):
            given = {"encoder_hidden_states": encoder_hidden_states}
            return torch.func.functional_call(unet, changed, (z, times), given)

        total = 0.0
        for share in attention(unet, lambda: pupil.predict(with_loras, z, time, read)).values():
            inside = interpolate(seen.float(), size=round(share.shape[2] ** 0.5)).flatten()
            total = total + (share[..., [words[k], ends[k]]].float() * inside[:, None]).norm()
        return total

    pupil.train("mace", loss, numbers, torch.optim.AdamW)
    return {layer: tuple(side.detach() for side in sides) for layer, sides in loras.items()}


def fused(loras: list[dict], Cs: list[Tensor], PP: Tensor | None, lamb: float) -> dict[str, Tensor]:
    """One change of each layer's weights that answers the tokens Cs[i] of every concept as its LoRA does (equation 8):
    (out, d) by layer."""
    eye = torch.eye(Cs[0].shape[1], dtype=Cs[0].dtype, device=Cs[0].device)
    total = sum(C.T @ C for C in Cs) + (0.0 if PP is None else PP) + lamb * eye
    return {
        name: sum(
            torch.linalg.solve(total, C.T @ C @ (lora[name][0] @ lora[name][1]).to(C).T).T
            for lora, C in zip(loras, Cs, strict=True)
        )
        for name in loras[0]
    }
