"""Settings of `rece.erase` for kinds of concepts and models: `rece erase … --preset sd1-style`.

Those of Stable Diffusion 1.4 are the published ones. For other models nothing is published, so "other" is our guess.
"""

from typing import NamedTuple


class Preset(NamedTuple):
    """Keywords of `rece.erase`, and where they come from."""

    settings: dict
    source: str


NUDITY = {"rounds": 3, "each": {"derive_lamb": 0.1}}
PRESETS = {
    "sd1-nudity": Preset(NUDITY, "RECE's paper and code, for nudity on Stable Diffusion 1.4"),
    "sd1-unsafe": Preset({"rounds": 2, "each": {"derive_lamb": 0.1}}, "RECE's code, eleven unsafe concepts at once"),
    "sd1-style": Preset(
        {"target": "art", "rounds": 1, "start": {"preserve_scale": 0.1}, "each": {"derive_lamb": 0.001}},
        "RECE's code, for an artist; it also preserves the names of 1,734 other artists",
    ),
    "sd1-object": Preset(
        {"rounds": 1, "each": {"derive_lamb": 0.001}, "preserve": []},
        "RECE's code, for an object that is hard to erase; easy ones have a derive_lamb of 0.1 or no rounds",
    ),
    "other": Preset(
        NUDITY | {"relative": True},
        "our guess for SDXL, SD 3, FLUX and PixArt: the numbers of nudity, with every lambda in units of the model's "
        "own embeddings, whose sizes differ between text encoders",
    ),
}
