"""`python tests/bench/edit.py`: the one-map solver against the published per-layer method, both timed in one run.

The layers that read the prompt and the text encoders have the shapes of Stable Diffusion 1.4, 2.1 or XL and random
weights; the rest of the UNet takes no part in an edit of the tokens' path and is left out. The task is the paper's
nudity setting: a UCE start and three rounds. A second table has many concepts erased jointly.
"""

import argparse
import json
import os
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import CLIPTextConfig, CLIPTextModel

import rece
from rece import files, layers, texts

ROOT = Path(__file__).parents[2]
ROUNDS, TEXTS, POSITIONS = 3, ("nudity", " ", ""), 77
# model: widths of the cross-attention blocks, each with a K and a V matrix; text encoders (width, layers, heads);
# layers that the literal method is timed on unless --full
SHAPES = {
    "sd14": ([320] * 5 + [640] * 5 + [1280] * 6, [(768, 12, 12)], 32),
    "sd21": ([320] * 5 + [640] * 5 + [1280] * 6, [(1024, 23, 16)], 32),
    "sdxl": ([640] * 10 + [1280] * 60, [(768, 12, 12), (1280, 32, 20)], 7),
}
# how many concepts are erased jointly; of the literal method, all beyond FEW are extrapolated
MANY = {"sd14": (1, 10, 100, 1000), "sdxl": (1, 10)}
FEW = 10
SIDE, COPIED = 1536, 2**25  # of the matrices and the float32 numbers that the processor's rates are measured with


class CLIPTokenizerOfWords:
    """Stands in for CLIP's tokenizer: every word is one token, its checksum."""

    model_max_length, all_special_tokens = POSITIONS, ()

    def num_special_tokens_to_add(self) -> int:
        return 2

    def __call__(self, text: str, add_special_tokens: bool = True, **_) -> SimpleNamespace:
        ids = [zlib.crc32(word.encode()) % 49406 for word in text.split()]
        if not add_special_tokens:
            return SimpleNamespace(input_ids=ids)
        ids = [49406, *ids, 49407]
        padding = POSITIONS - len(ids)
        return SimpleNamespace(input_ids=ids + [49407] * padding, attention_mask=[1] * len(ids) + [0] * padding)


class Standin:
    """What `rece` reads of a pipeline: K and V matrices, text encoders, a tokenizer of whole words."""

    def __init__(self, blocks: list[int], encoders: list[tuple[int, int, int]], device: str):
        torch.manual_seed(0)
        d = sum(width for width, _, _ in encoders)
        self.unet = torch.nn.Module()
        self.unet.config = self.config = {}
        for n, out in enumerate(blocks):
            attention = torch.nn.Module()
            for name in ("to_k", "to_v"):
                attention.add_module(name, torch.nn.Linear(d, out, bias=False, device=device))
            block = torch.nn.Module()
            block.add_module("attn2", attention)
            self.unet.add_module(str(n), block)
        self.text_encoders = [
            CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
                )
            )
            .to(device)
            .eval()
            for width, layers, heads in encoders
        ]
        self.text_encoder, self.tokenizer = self.text_encoders[0], CLIPTokenizerOfWords()
        self._execution_device = torch.device(device)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def encode_prompt(self, prompt: list[str], device: torch.device, **_) -> tuple[torch.Tensor]:
        ids = torch.tensor([self.tokenizer(text).input_ids for text in prompt], device=device)
        return (torch.cat([encoder(ids).last_hidden_state for encoder in self.text_encoders], dim=-1),)


def names(concepts: int) -> list[str]:
    """So many concepts of one word, each another token, the first being that of the paper's setting."""
    tokenizer, found = CLIPTokenizerOfWords(), {}
    for word in (TEXTS[0], *(f"concept{n}" for n in range(1, 2 * concepts))):
        found.setdefault(tokenizer(word, add_special_tokens=False).input_ids[0], word)
    return list(found.values())[:concepts]


def one_map(pipe: Standin, concepts: int = 1) -> dict[str, float]:
    """Seconds of the parts of `rece.erase` and `Eraser.apply`, and the peak memory above what was in use before."""
    spent = dict.fromkeys(("encode", "gram"), 0.0)
    with _peak_memory(pipe) as memory, _clocked(pipe, spent):
        start = _now(pipe)
        eraser = rece.erase(pipe, names(concepts), rounds=ROUNDS, progress=False)
        spent["solve"] = _now(pipe) - start - spent["encode"] - spent["gram"]
        start = _now(pipe)
        eraser.apply(pipe)
        spent["write back"] = _now(pipe) - start
    eraser.remove(pipe)
    return spent | {"total": sum(spent.values()), "peak MB": memory["peak"]}


def literal_method(pipe: Standin, sample: int, concepts: int = 1) -> tuple[dict[str, float], list[list[torch.Tensor]]]:
    """The same edit by tests/literal.py, float32, texts encoded once: own sums and own inverse for every layer.

    Timed on `sample` layers spread over the model and one round, scaled to all of them. Returns the seconds, and the
    weights of those layers after the UCE start and after the first round.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    import literal

    all_weights = [weight.float() for weight in layers.originals(pipe).values()]
    some = all_weights[:: max(1, len(all_weights) // sample)][:sample]
    scale = sum(map(len, all_weights)) / sum(map(len, some))
    with _peak_memory(pipe) as memory, torch.device(pipe._execution_device):
        start = _now(pipe)
        with torch.no_grad():
            texts = [*names(concepts), *TEXTS[1:]]
            *C, T, P = (pipe.encode_prompt([text], pipe._execution_device)[0][0] for text in texts)
        encode = _now(pipe) - start
        start = _now(pipe)
        first = literal.edit(some, [(c[1:], T[:-1]) for c in C], [P], 0.5, 1.0, 1.0)
        edit = _now(pipe) - start
        rows, targets = torch.cat(C), T.repeat(concepts, 1)
        start = _now(pipe)
        derived = literal.derive(first, some, rows, 0.1, "zero", targets)
        derive = _now(pipe) - start
        start = _now(pipe)
        literal.derive(first[:1], some[:1], rows, 0.1, "zero", targets)
        base = min(_now(pipe) - start, derive)
        start = _now(pipe)
        second = literal.edit(first, [(rows, T) for rows in derived.split(len(T))], [T] * concepts, 0.1, 1.0, 0.1)
        edit += ROUNDS * (_now(pipe) - start)
    spent = {"encode": encode, "derive": ROUNDS * (base + (derive - base) * scale), "edit": edit * scale}
    spent |= {"total": sum(spent.values()), "peak MB": memory["peak"], "layers": len(some)}
    return spent, [first, second]


@torch.no_grad()
def published_edit(pipe: Standin) -> dict[str, float]:
    """The edits as the published code orders the work, without its derivations: one layer is timed, one edit is that
    times all layers, and there are 1 + ROUNDS edits.

    For every layer all texts are encoded again, the keys and values of all layers are computed though one is used, and
    the outer products of all rows are formed before they are summed.
    """
    weights = [weight.float() for weight in layers.originals(pipe).values()]
    some = sorted(range(len(weights)), key=lambda n: len(weights[n]))[:: len(weights) - 1]
    start = _now(pipe)
    for n in some:
        W = weights[n]
        wanted, seen = 0.5 * W, 0.5 * torch.eye(W.shape[1], device=W.device)
        C, T, P = (pipe.encode_prompt([text], pipe._execution_device)[0][0] for text in TEXTS)
        for K, meant in ((C, T), (P, P)):
            answers = [meant @ other.T for other in weights]
            wanted = wanted + (answers[n][:, :, None] * K[:, None, :]).sum(0)
            seen = seen + (K[:, :, None] * K[:, None, :]).sum(0)
        wanted @ torch.inverse(seen)
    spent = (_now(pipe) - start) / len(some) * len(weights) * (1 + ROUNDS)
    return {"total": spent, "layers": len(some)}


def floor(pipe: Standin, rates: dict[str, float], concepts: int = 1) -> dict[str, float]:
    """The least seconds each part could take: its multiply-adds at the measured matmul rate, its bytes at the measured
    bandwidth, whichever is more.

    The solves are counted in the cheaper of two forms: with the n token rows of the concepts in every product, or with
    n only in two sums over them, C^T C and C^T T, that all rounds share (a derived row is a (d, d) map of its own).
    """
    weights = list(layers.originals(pipe).values())
    d, rows, n = weights[0].shape[1], sum(map(len, weights)), POSITIONS * concepts
    size = rows * d * weights[0].element_size()
    blocks = sum(p.numel() for e in pipe.text_encoders for p in e.encoder.parameters())
    texts = concepts + len(TEXTS) - 1
    solve = d**3 / 3 + 2 * d**3  # Cholesky, solve
    kept = 2 * POSITIONS * d**2
    by_rows = (1 + ROUNDS) * (4 * n * d**2 + kept + solve) + ROUNDS * (4 * d**3 + 4 * n * d**2 + d**3 / 3 + 2 * d**3)
    by_sums = 2 * 4 * n * d**2 + (1 + ROUNDS) * (kept + solve) + ROUNDS * (4 * d**3 + solve + 6 * d**3 + 2 * d**3)
    work = {
        "encode": (2 * blocks * POSITIONS * texts, 4 * blocks, "float32"),
        "gram": (2 * rows * d**2, size, "float64"),
        "solve": (min(by_rows, by_sums), 8 * n * d, "float64"),
        "write back": (2 * rows * d**2, 2 * size, "float32"),
    }
    parts = {part: max(flop / rates[kind], moved / rates["bytes"]) for part, (flop, moved, kind) in work.items()}
    return parts | {"total": sum(parts.values())}


def many(
    pipe: Standin, rates: dict[str, float], single: dict[str, dict], counts: tuple[int, ...], sample: int
) -> dict[int, dict]:
    """The second table: for each number of concepts the parts of `one_map`, their floor, the literal method's seconds.

    single: what the first table holds, for one concept. The literal method is timed with FEW concepts on `sample`
    layers, and follows a straight line from one concept through that: its work is the same for every further concept.
    """
    few, _ = literal_method(pipe, sample, FEW)
    one, table = single["literal"]["total"], {}
    for concepts in counts:
        table[concepts] = dict(single["one map"] if concepts == 1 else one_map(pipe, concepts))
        table[concepts]["floor"] = floor(pipe, rates, concepts)
        table[concepts]["literal"] = one + (few["total"] - one) * (concepts - 1) / (FEW - 1)
        table[concepts]["literal extrapolated"] = concepts > FEW
    return table


def measure_rates(pipe: Standin) -> dict[str, float]:
    """Matmul rates in FLOP/s and copy bandwidth in bytes/s (read and write counted), the best of three."""
    device, rates = pipe._execution_device, {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        a = torch.rand(SIDE, SIDE, dtype=dtype, device=device)
        rates[name] = 2 * len(a) ** 3 / min(_timed(pipe, lambda a=a: a @ a) for _ in range(4))
    source = torch.rand(COPIED, device=device)
    target = torch.empty_like(source)
    rates["bytes"] = 8 * len(source) / min(_timed(pipe, lambda: target.copy_(source)) for _ in range(4))
    return rates


def warm_up(device: str) -> None:
    """Both methods once at a tiny shape, so that what a library or a GPU sets up at first use is not timed."""
    tiny = Standin([8], [(16, 1, 2)], device)
    one_map(tiny)
    literal_method(tiny, 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/bench/edit.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--full", action="store_true", help="time the literal method on all layers, not on a sample")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="write results/bench/bench.json too")
    asked = parser.parse_args()

    report = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": asked.device,
        "torch": torch.__version__,
    }
    warm_up(asked.device)
    print(f"nudity setting: UCE start and {ROUNDS} rounds; {asked.device}, {report['threads']} threads; seconds")
    for name in SHAPES if asked.model == "all" else [asked.model]:
        blocks, encoders, sample = SHAPES[name]
        pipe = Standin(blocks, encoders, asked.device)
        matrices = 2 * len(blocks)
        rates = measure_rates(pipe)
        texts.encode(pipe, list(TEXTS))
        ours, least = one_map(pipe), floor(pipe, rates)
        sample = matrices if asked.full else min(sample, matrices)
        slow, _ = literal_method(pipe, sample)
        published = published_edit(pipe)
        report[name] = {"one map": ours, "floor": least, "literal": slow, "published": published, "rates": rates}
        _print(name, matrices, layers.width(pipe), report[name])
        if name in MANY:
            report[name]["many"] = many(pipe, rates, report[name], MANY[name], sample)
            _print_many(report[name]["many"], f"{sample} of {matrices}")
        del pipe
    if asked.json:
        path = ROOT / "results" / "bench" / "bench.json"
        with files.replacing(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


def _print(name: str, matrices: int, d: int, timed: dict) -> None:
    ours, least, slow, published, rates = timed.values()
    print(f"\n{name}: {matrices} matrices of width {d}")
    print(f"  {'one map':34}{'time':>9}{'floor':>9}{'x floor':>9}")
    for part in ("encode", "gram", "solve", "write back", "total"):
        print(f"    {part:32}{ours[part]:9.2f}{least[part]:9.2f}{ours[part] / least[part]:9.1f}")
    print(f"  literal, layer by layer, float32{'':2}{'time':>9}{'x ours':>9}")
    for part in ("encode", "derive", "edit", "total"):
        ratio = f"{slow[part] / ours[part]:9.1f}" if part in ours else ""
        print(f"    {part:32}{slow[part]:9.2f}{ratio}")
    print(f"    (measured: {slow['layers']} of {matrices} layers, start and one round; scaled up)")
    ratio = published["total"] / ours["total"]
    print(f"  {'in the published order, edits only':34}{published['total']:9.2f}{ratio:9.1f}")
    print(f"    (scaled from {published['layers']} of {matrices} layers of one edit, out of {1 + ROUNDS} edits)")
    print(f"  peak memory above the model: one map {ours['peak MB']:.0f} MB, literal {slow['peak MB']:.0f} MB")
    single, double, moved = (rates[kind] / 1e9 for kind in ("float32", "float64", "bytes"))
    print(f"  measured rates: {single:.0f} GFLOP/s float32, {double:.0f} GFLOP/s float64, {moved:.0f} GB/s")


def _print_many(table: dict[int, dict], matrices: str) -> None:
    parts = ("encode", "gram", "solve", "write back", "total")
    print(f"  {'concepts':>8}", *(f"{part:>11}" for part in parts), sep="", end="")
    print(f"{'floor':>8}{'x floor':>9}{'peak MB':>9}{'literal':>10}{'x ours':>8}")
    for concepts, row in table.items():
        least, slow = row["floor"]["total"], row["literal"]
        print(f"  {concepts:8}", *(f"{row[part]:11.2f}" for part in parts), sep="", end="")
        mark = "*" if row["literal extrapolated"] else " "
        print(f"{least:8.2f}{row['total'] / least:9.1f}{row['peak MB']:9.0f}", end="")
        print(f"{slow:9.1f}{mark}{slow / row['total']:8.1f}")
    print(f"    (literal: {matrices} layers with 1 and {FEW} concepts, scaled up; * on a line through these two)")


def _now(pipe: Standin) -> float:
    if pipe._execution_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _timed(pipe: Standin, call) -> float:
    start = _now(pipe)
    call()
    return _now(pipe) - start


@contextmanager
def _clocked(pipe: Standin, spent: dict[str, float]):
    """Adds the time spent in texts.encode and layers.gram to `spent`."""
    homes = {"encode": texts, "gram": layers}
    real = {name: getattr(homes[name], name) for name in spent}

    def clocked(name):
        def call(*given, **named):
            start = _now(pipe)
            result = real[name](*given, **named)
            spent[name] += _now(pipe) - start
            return result

        return call

    try:
        for name in real:
            setattr(homes[name], name, clocked(name))
        yield
    finally:
        for name, function in real.items():
            setattr(homes[name], name, function)


@contextmanager
def _peak_memory(pipe: Standin):
    """Yields a dict that holds, after the block, the "peak" of memory above the start in MB; nan if not known."""
    found = {"peak": float("nan")}
    if pipe._execution_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found["peak"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        return
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        yield found
        return
    reset.write_text("5")  # sets the high-water mark to the present size
    before = _status(status, "VmRSS")
    yield found
    found["peak"] = (_status(status, "VmHWM") - before) / 1e3


def _status(path: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))


if __name__ == "__main__":
    main()
