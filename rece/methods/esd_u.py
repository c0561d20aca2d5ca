"""ESD-u: as ESD-x, but all of the model learns except the layers that read the prompt (arXiv 2303.07345).

As the paper's own first code has it ("noxattn"): neither the last layer nor the embedding of time. No difference is
known, but that several concepts take turns at random.
"""

from diffusers import DiffusionPipeline

from rece.edits import Weights
from rece.methods import _esd

SETTINGS = _esd.SETTINGS


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    eta: float = 1.0,
    **training,
) -> Weights:
    """`esd_x.erase` with the parameters whose name holds neither attn2 nor time_embed, nor begins with conv_out."""

    def chosen(name: str) -> bool:
        return "attn2" not in name and "time_embed" not in name and not name.startswith(("conv_out", "conv_norm_out"))

    return _esd.trained(pipe, concept, "esd_u", chosen, eta, training)
