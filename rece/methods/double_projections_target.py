"""Double Projections with the target as its safe concept, which lies outside of the preserved span (CVPR 2026, arXiv
2604.10032); see `double_projections`."""

from diffusers import DiffusionPipeline

from rece.eraser import Eraser
from rece.methods import double_projections


def erase(
    pipe: DiffusionPipeline,
    concept: str | list[str],
    *,
    target: str | list[str] = " ",
    preserve: list[str] | None = None,
    keep: int | None = None,
    progress: bool = True,
) -> Eraser:
    """`double_projections.erase` with safe="target"."""
    made = double_projections.erase(pipe, concept, target=target, preserve=preserve, safe="target", keep=keep)
    return Eraser(made.map, made.provenance | {"method": "double_projections_target"})
