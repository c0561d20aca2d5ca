"""`python tests/bench/bits.py`: what is the same under other settings of the machine, to the bit or nearly.

RECE's eraser of "dog", and forty pictures of the original, each made by a process of its own under every setting, then
compared with those of the setting that the line names.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from rece.judges.embedded import Judge
from rece.study import config

PLAIN = {"threads": "1", "dtype": "float32", "vectors": "all"}
TWO, HALF = PLAIN | {"threads": "2"}, PLAIN | {"dtype": "bfloat16"}
LINES = {
    "run again": (PLAIN, PLAIN),
    "two threads, not one": (TWO, PLAIN),
    "no vector instructions (another processor)": (PLAIN | {"vectors": "none"}, PLAIN),
    "bfloat16, not float32": (HALF, PLAIN),
    "bfloat16 run again": (HALF, HALF),
    "bfloat16, two threads, not one": (HALF | {"threads": "2"}, HALF),
}
CODE = """
import sys, numpy, torch
import rece
from rece.images import generate
from rece.study import config
threads, dtype, out = sys.argv[1:]
torch.set_num_threads(int(threads))
pipe, params = config.load("data/emoji-diffusion"), config.params()
M = rece.erase(pipe, "dog", **params["erase"]["rece"], progress=False).map
prompts = [f"a {name} in noto style" for name in ("dog", "church", "pizza", "tree") for _ in range(10)]
images = generate(pipe, prompts, range(40), **params["generate"] | {"bf16": dtype == "bfloat16"}, progress=False)
numpy.savez(out, M=M.numpy(), images=images)
"""


def made(folder: Path, name: str, setting: dict) -> dict[str, np.ndarray]:
    """What a process under a setting makes."""
    machine = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"} if setting["vectors"] == "none" else {}
    path = folder / f"{name}.npz"
    command = [sys.executable, "-c", CODE, setting["threads"], setting["dtype"], str(path)]
    subprocess.run(command, check=True, env=os.environ | machine, cwd=config.root())
    return dict(np.load(path))


def main():
    judge = Judge.load(config.root() / "data/judge")
    print("| | the eraser's map differs by | pixels that differ | by how many levels of 256 | other answers |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n, (line, (setting, beside)) in enumerate(LINES.items()):
            one, two = (made(Path(folder), f"{n}{side}", how) for side, how in (("a", setting), ("b", beside)))
            moved = np.abs(one["M"] - two["M"]).max() / np.abs(two["M"]).max()
            levels = np.abs(one["images"].astype(int) - two["images"])
            (label, *_), (old, *_) = (judge.labels(some["images"]) for some in (one, two))
            cells = f"{moved:.0e}" if moved else "0", f"{(levels > 0).mean():.2%}", levels.max(), (label != old).sum()
            print(f"| {line} | {' | '.join(map(str, cells))} of {len(label)} |", flush=True)


if __name__ == "__main__":
    main()
