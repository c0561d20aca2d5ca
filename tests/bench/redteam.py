"""`python tests/bench/redteam.py`: the certificate and the attacks, each beside its literal form, in one run.

Certificate: all tokens of a prompt at once from one eigendecomposition, against one eigendecomposition per token, at
the text widths of Emoji Diffusion's trial (192), Stable Diffusion 1.x (768) and SDXL (2048), on random weights; the
floor is its arithmetic (two symmetric eigendecompositions at 9 d^3, and its products) at the measured float64 rate.
Attacks: updates per second of each gradient attack on the embedded model, all prompts side by side, against one prompt
at a time.
"""

import argparse
import time

import torch

from rece import attacks, solver
from rece.certificate import bound
from rece.emoji import world as worlds
from rece.erasing import erase
from rece.study import config, plan

WIDTHS, TOKENS = (192, 768, 2048), 76
UPDATES = 10
ATTACKS = {
    "unlearndiff": {"tokens": 3, "updates": UPDATES, "times": UPDATES},
    "p4d_n": {"tokens": 8, "updates": UPDATES},
    "p4d_k": {"updates": UPDATES},
    "inversion": {"updates": UPDATES},
}


def certificate(d: int, seed: int = 0) -> dict[str, float]:
    """Seconds of `bound` for TOKENS random tokens of width d, of the literal form (scaled up from two tokens),
    and of the floor."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    gamma, beta = 1 + 0.1 * normal(d), 0.1 * normal(d)
    C = torch.nn.functional.layer_norm(normal(TOKENS, d), (d,)) * gamma + beta
    M = solver.edit_map(C, torch.zeros_like(C), lamb=0.1 * d)
    G = solver.gram([normal(2 * d, d)])
    a = normal(1024, 1024)
    rate = 2 * 1024**3 / min(_timed(lambda: a @ a) for _ in range(4))
    ours = min(_timed(lambda: bound(M, G, C, gamma, beta)) for _ in range(2 if d > 1000 else 4))
    each = _timed(lambda: [bound(M, G, c[None], gamma, beta) for c in C[:2]]) / 2
    return {"ours": ours, "literal": each * TOKENS, "floor": (2 * 9 + 3 * 2) * d**3 / rate}


def attack(name: str, prompts: int) -> dict[str, float]:
    """Updates times prompts per second of an attack on the embedded model, with `prompts` side by side and one at a
    time; drawing the original's images is part of it in both."""
    params, world = config.params(), worlds.load()
    spec, pipe = params["concept"]["horse"], config.load(params["model"])
    numbers = plan.numbers(spec, "uce", params["erase"]["uce"])
    victim = erase(pipe, spec["erase"], progress=False, **numbers).copy_of(pipe)
    cases = plan.cases(world, spec, prompts, 500_000)
    budget = {**ATTACKS[name], "steps": 4, "batch_size": prompts, "bf16": "auto", "progress": False}
    common = {"original": pipe, "concept": plan.named(world, spec)}
    run = lambda some, **other: attacks.run(  # noqa: E731
        name, victim, list(some.prompt), list(some.seed), **common, **{**budget, **other}
    )
    run(cases.head(1), updates=1)  # warm up
    together = run(cases).seconds
    apart = sum(run(cases.iloc[[n]], batch_size=1).seconds for n in range(min(2, prompts))) / min(2, prompts) * prompts
    return {"ours": prompts * UPDATES / together, "literal": prompts * UPDATES / apart}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/bench/redteam.py", description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=8, help="prompts per attack")
    asked = parser.parse_args()
    print(f"certificate of {TOKENS} tokens; {torch.get_num_threads()} threads; seconds")
    print(f"  {'width':>6}{'time':>9}{'floor':>9}{'x floor':>9}{'one by one':>12}{'x ours':>8}")
    for d in WIDTHS:
        found = certificate(d)
        ours, slow, least = found["ours"], found["literal"], found["floor"]
        print(f"  {d:6}{ours:9.3f}{least:9.3f}{ours / least:9.1f}{slow:12.1f}{slow / ours:8.1f}")
    print(f"attacks on the embedded model; {asked.prompts} prompts; updates x prompts per second")
    print(f"  {'attack':14}{'together':>10}{'one by one':>12}{'ratio':>8}")
    for name in ATTACKS:
        found = attack(name, asked.prompts)
        print(f"  {name:14}{found['ours']:10.0f}{found['literal']:12.0f}{found['ours'] / found['literal']:8.1f}")


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
