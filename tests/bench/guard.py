"""`PYTHONPATH=tests python -m bench.guard`: the guarded eraser beside UCE and RECE at real models' widths, in one run.

The layers that read the prompt have the shapes of Stable Diffusion 1.4, XL or FLUX.1 and random weights. A text is
random tokens of its own, so encoding costs nothing here; `edit.py` has what it costs. guard keeps its everyday words.
Each is computed twice on the same pipeline: the second time the Gram matrix and its factor are known.
"""

import argparse
import zlib
from functools import partial

import torch
from bench import edit
from bench.edit import POSITIONS, ROUNDS, Standin, names

import rece

# model: outputs of the blocks, each with a K and a V matrix; width of the text
SHAPES = {
    "sd14": (edit.SHAPES["sd14"][0], 768),
    "sdxl": (edit.SHAPES["sdxl"][0], 2048),
    "flux": ([1536], 4096),  # K and V together have the 3,072 outputs of its one context embedder
}
COUNTS = (1, 100, 1000)


class Random(Standin):
    """A Standin whose texts are random tokens, the same for the same text."""

    def __init__(self, blocks: list[int], width: int, device: str):
        super().__init__(blocks, [(width, 0, 1)], device)

    def encode_prompt(self, prompt: list[str], device: torch.device, **_) -> tuple[torch.Tensor]:
        seeds = [torch.Generator(device).manual_seed(zlib.crc32(text.encode())) for text in prompt]
        width = self.text_encoder.config.hidden_size
        return (torch.stack([torch.randn(POSITIONS, width, generator=seed, device=device) for seed in seeds]),)


METHODS = {
    "UCE": partial(rece.erase, rounds=0, progress=False),
    f"RECE, {ROUNDS} rounds": partial(rece.erase, rounds=ROUNDS, progress=False),
    "guard": partial(rece.guard, progress=False),
}


def measure(shape: tuple[list[int], int], concepts: int, device: str) -> dict[str, dict[str, float]]:
    """For every method its seconds the first time and the second, and the rank of what it edits."""
    found = {}
    for method, erase in METHODS.items():
        pipe, seconds = Random(*shape, device), {}
        for time in ("first", "again"):
            start = edit._now(pipe)
            eraser = erase(pipe, names(concepts))
            seconds[time] = edit._now(pipe) - start
        found[method] = seconds | {"rank": eraser.rank}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    measure(([8], 16), 2, asked.device)  # what a library or a device sets up at first use is not timed
    print(f"seconds; {asked.device}, {torch.get_num_threads()} threads")
    print(f"{'model':>8}{'concepts':>10}  {'method':16}{'first':>9}{'again':>9}{'x UCE':>8}{'rank':>7}")
    for name in SHAPES if asked.model == "all" else [asked.model]:
        for concepts in COUNTS:
            rows = measure(SHAPES[name], concepts, asked.device)
            for method, row in rows.items():
                ratio = row["first"] / rows["UCE"]["first"]
                print(f"{name:>8}{concepts:10}  {method:16}{row['first']:9.2f}{row['again']:9.2f}", end="")
                print(f"{ratio:8.1f}{row['rank']:7}", flush=True)


if __name__ == "__main__":
    main()
