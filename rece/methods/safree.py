"""SAFREE: tokens of a prompt that bring it near the concept are projected away from it (Yoon et al., ICLR 2025, arXiv
2410.12761).

Not reproduced: the filter that ends the projection after some steps, so that it acts in all of them, and the weights
of frequencies in the UNet. The concept's phrases are templates around it. The pooled embedding is here the row of the
last position. `ends` is ours.
"""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, solver, texts
from rece.edits import Hooks
from rece.eraser import origin
from rece.methods._tokens import TEMPLATES, check_templates, spanned

PART = "text_encoder"


class Hook(torch.nn.Module):
    """In every prompt, a row h of a token that is a trigger becomes (I - C) P h.

    The summary of a prompt is the row of its last position, which has read all others. C projects on the summaries of
    the concept's phrases, P on those of the prompt with one token masked. A token is a trigger where without it the
    summary is further from C's span than (1 + alpha) times the mean over the prompt's other tokens. ends: the rows
    after a prompt's words count as triggers where one of its words does. A prompt of a single token stays as it is:
    there is no other to compare with.
    """

    def __init__(self, state: dict[str, Tensor], alpha: float, ends: bool):
        super().__init__()
        self.alpha, self.ends, self.masked = alpha, ends, None
        self.register_buffer("basis", state["basis"].clone())

    def attach(self, pipe: DiffusionPipeline) -> list:
        encoder = pipe.text_encoder
        embeddings = next(one for name, one in encoder.named_modules() if name.rpartition(".")[2] == "embeddings")
        plain = encoder.get_input_embeddings().weight
        fillers = {pipe.tokenizer.eos_token_id, pipe.tokenizer.pad_token_id}

        def read(_, args, found: Tensor) -> Tensor:
            self.seen = found if self.masked is None else self.masked
            return self.seen

        def project(_, args, kwargs, found):
            if self.masked is not None:
                return found
            seen, rows = self.seen, found[0]
            places = embeddings.position_embedding.weight[: seen.shape[1]]
            written = torch.stack([(seen != plain[token] + places).any(2) for token in fillers]).all(0)
            written[:, 0] = False  # the token that begins every prompt
            without = rows.new_zeros(rows.shape)
            for place in written.any(0).nonzero().flatten().tolist():
                self.masked = seen.clone()
                self.masked[:, place] = plain[0] + places[place]
                try:
                    without[:, place] = encoder(*args, **kwargs)[0][:, -1]
                finally:
                    self.masked = None
            cut = torch.stack([self.cut(*one) for one in zip(rows, without, written, strict=True)])
            return type(found)({**found, "last_hidden_state": cut})

        return [
            embeddings.register_forward_hook(read),
            encoder.register_forward_hook(project, with_kwargs=True),
        ]

    def cut(self, rows: Tensor, without: Tensor, written: Tensor) -> Tensor:
        """The rows of one prompt, (positions, d), after the projection. without: its summaries, each without the token
        of that position. written: which positions hold a word's token, bool (positions,)."""
        C, own = self.basis.float(), without[written].float()
        if len(own) < 2:
            return rows
        with torch.autocast(rows.device.type, enabled=False):
            far = (own - own @ C @ C.T).norm(dim=1)
            others = (far.sum() - far) / (len(far) - 1)
            trigger = torch.zeros_like(written).index_put((written,), far > (1 + self.alpha) * others)
            if self.ends and trigger.any():
                trigger[written.nonzero().max() + 1 :] = True
            V = spanned(own)
            left = rows.float() @ V @ V.T
            return torch.where(trigger[:, None], (left - left @ C @ C.T).to(rows.dtype), rows)


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    alpha: float = 0.01,
    ends: bool = False,
    templates: tuple[str, ...] = TEMPLATES,
    progress: bool = True,
) -> Hooks:
    """The hook on the text encoder, see `Hook`. Whoever feeds the model embeddings goes round it. target and preserve
    are not used. Raises TypeError if the model reads more than tokens, ValueError naming the parameter."""
    concepts = texts.concepts_of(concept)
    solver.positive(alpha, "alpha", or_zero=True)
    check_templates(templates)
    families.check_tokens_alone(pipe)
    asked = [template.format(text) for text in concepts for template in templates]
    provenance = {**origin(pipe), "concepts": concepts, "method": "safree", "templates": list(templates)}
    state = {"basis": spanned(texts.encode(pipe, asked)[:, -1])}
    return Hooks("safree", state, {"alpha": alpha, "ends": ends}, provenance)
