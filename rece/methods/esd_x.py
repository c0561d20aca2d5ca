"""ESD-x: the layers that read the prompt learn to predict away from the concept (Gandikota et al., ICCV 2023,
arXiv 2303.07345).

As the paper's own first code has it. No difference is known, but that several concepts take turns at random.
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
    """Train the parameters of all layers named attn2, which read the prompt. target and preserve are not used.

    Latents z are drawn by the model that learns, with the concept's prompt c and guidance, up to a random step. It
    learns to predict e(z, "") - eta (e(z, c) - e(z, "")) for c, where e is what the original predicts (equation 5).
    training: see `Training`.
    """
    return _esd.trained(pipe, concept, "esd_x", lambda name: "attn2" in name, eta, training)
