"""Few-shot unlearning: the text encoder unlearns to denoise a few pictures of the concept (Fuchi and Takagi, BMVC
2024, arXiv 2405.07288).

Not reproduced: pictures from the world; they are the original model's own. They are not mirrored. The published
prompts are the templates of textual inversion; here a few of the same kind.
"""

from dataclasses import replace
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import mse_loss

from rece import solver
from rece.edits import Weights
from rece.methods._tokens import check_templates, ids
from rece.methods._training import Pupil, Training

SETTINGS = Training(iterations=10, lr=1e-5, batch_size=2, guidance=7.5)
TEMPLATES = ("a photo of a {}", "a picture of the {}", "a good photo of a {}", "a close-up photo of a {}")


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    pictures: int = 4,
    templates: tuple[str, ...] = TEMPLATES,
    **training,
) -> Weights:
    """Train the MLPs of the text encoder and the self-attention of its last layer, against the loss of denoising.

    pictures: how many of each concept, kept as latents. templates: what prompts are drawn from. The default of ten
    iterations is the published five epochs over four pictures. target and preserve are not used.
    training: see `Training`.
    """
    pupil = Pupil(pipe, concept, replace(SETTINGS, **training))
    solver.whole(pictures=pictures)
    check_templates(templates)
    asked = [template.format(name) for name in pupil.concepts for template in templates]
    drawn = [pupil.pictures([t.format(name) for t in templates], pictures) for name in pupil.concepts]
    last = f"layers.{pipe.text_encoder.config.num_hidden_layers - 1}.self_attn"
    pupil.learn("text_encoder", lambda name: ".mlp." in name or last in name)
    tokens = ids(pipe, asked)

    def loss(random: torch.Generator):
        n = pupil.settings.batch_size
        which = int(torch.randint(len(drawn), (), generator=random))
        rows = torch.randint(pictures, (n,), generator=random)
        prompts = which * len(templates) + torch.randint(len(templates), (n,), generator=random)
        z, times, wanted = pupil.noised(drawn[which][rows], random)
        read = pupil.text_encoder(tokens[prompts])[0].to(z.dtype)
        return -mse_loss(pupil.predict(pupil.unet, z, times, read), wanted.float())

    numbers = {"pictures": pictures, "templates": list(templates)}
    adam = partial(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-8)
    pupil.train("few_shot", loss, numbers, adam)
    return pupil.changes("few_shot", **numbers)
