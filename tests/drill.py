"""`make drill`: try to break the project as an unforgiving user would, and count what happens.

Every case is a call, a file or a command that is wrong in one way, or that looks wrong and is not. It ends in one of
these ways: `right`, it did what it should; `refused`, one line that names what is wrong; and the four that must not
happen. `silent`: it went on as if nothing were wrong. `traceback`: an error that no line explains. `hang`. `partial`:
a file is there that should not be, or is not whole. Random choices have seeds. Ends with 1 if any case ended badly.
"""

import argparse
import contextlib
import io
import itertools
import math
import os
import random
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import tiny
import torch
from safetensors.torch import load_file, save_file

import rece
from rece import attacks, images, loading
from rece.__main__ import EXPECTED, main
from rece.edits import Edit
from rece.sharing import export, prompts, recover, show
from rece.study import config

SECONDS = 30  # after which a case hangs
BAD = ("silent", "traceback", "hang", "partial")
NUMBERS = [0, -1, 10**400, 1e300, math.nan, math.inf, True, None, "1", "", b"1", [1], {}, 1j, object(), np.bool_(True)]
COUNTS = [-1, 0, 0.5, 10**9, math.nan, True, None, "3", [3], {}, object()]
FLAGS = ["false", "no", "true", 0, 1, None, [], math.nan, np.bool_(True), object()]
TEXTS = [None, 5, b"dog", math.nan, {}, object(), ["dog", 5], [["dog"]], [None]]
UNREAD = ["", " ", [], [""], ["dog", " "], "\x00", "dog\u200b", "d\u200bog", "\ud800", "<|endoftext|>", "word " * 99]
LISTS = ["cat", 5, {"cat": 1}, math.nan, [5], [None], [["cat"]], object(), "", b"cat"]

COMMANDS = r"""
nosuch
erase
erase {m}
erase {m} dog
erase {typo} dog -o {o}
erase owner/name dog -o {o}
erase {m} dog -o {o} --rounds few
erase {m} dog -o {o} --rounds ²
erase {m} dog -o {o} --rounds=--5
erase {m} dog -o {o} --rounds -1
erase {m} dog -o {o} --lamb 0
erase {m} dog -o {o} --lamb nan
erase {m} dog -o {o} --preserve-file {typo}
erase {m} dog -o {o} --others cat
erase {m} dog -o {o} --target a --target b
erase {m} dog -o {there}
erase {m} dog -o {there}/o.txt
erase {m} dog -o {e}
erase {m} dog -o {o} --method nosuch
erase {m} dog -o {o} --preset nosuch
erase {m} dog -o {o} --preset other --method esd_x
erase {m} dog -o {o} --dtype int8
erase {m} dog -o {o} --device gpu7
erase {m} dog -o {o} --set preserve=[a
erase {m} dog -o {o} --set "x=!!python/object/apply:os.system ['true']"
erase {m} dog -o {o} --set anchored=maybe
erase {m} dog -o {o} --set target=5
erase {m} dog -o {o} --set nosuch=1
erase {m} dog -o {o} --set lamb
erase {m} dog -o {o} --set start.lamb=-1
erase {m} dog -o {o} --set start.lamb=x
erase {m} dog -o {o} --set each.reg=nosuch
erase {m} dog -o {o} --set start.tokens=first
erase {m} dog -o {o} --set "pooled=no way"
erase {m} dog -o {o} --set rounds=²
guard {m} dog -o {o} --mu 0
guard {m} dog -o {o} --rank 0
guard {m} dog -o {o} --oblique 2
apply {m} {e} -o {m} --force
apply {m} {typo} -o {there}/a
lora {m} {e} -o {there} --force
lora {m} {e} -o {there}/l --rank 0
lora {m} {e} -o {e} --force
lora {m} {e} -o {o} --licence mit
weights {m} {e} -o {e} --force
import {m} {odd} -o {o}
import {m} {m} -o {o}
certify {m} {e} --others
certify {m} {typo}.safetensors dog
certify {m}
show {typo}
show {odd}
show {m}
draw {m} "a dog"
draw {m} "a dog" -o {there}/d.png --steps 0
draw {m} "a dog" -o {there}/d.png --part 1/2
draw {m} "a dog" -o {there}/d.png --scheduler NoSuch
draw {m} {typo}.csv -o {there}/d
push {typo} me/x
push {m} me
arena {typo}
"""
HEAD = "prompt,seed,guidance\n"
TABLES = {
    "trailing comma": HEAD + "a dog,5,7,\n",
    "decimal comma": HEAD + "a dog,1,7,5\n",
    "nan": HEAD + "a dog,1,nan\n",
    "underscore": HEAD + "a dog,1,1_0\n",
    "seed 1.5": HEAD + "a,1.5,7\n",
    "seed -1": HEAD + "a,-1,7\n",
    "seed 2^70": HEAD + f"a,{2**70},7\n",
    "no seed": HEAD + "a,,7\n",
    "few fields": HEAD + "a\n",
    "no rows": HEAD,
    "no columns": "x,y\n1,2\n",
    "twice": "prompt,prompt,seed\na,b,1\n",
    "nothing": "",
}


class Hang(BaseException):
    """A case takes too long."""


class Partial(Exception):
    """A file is there that should not be, or is not whole."""


@contextlib.contextmanager
def limited():
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call, named: str, wanted=None) -> tuple[str, str]:
    """How a case ends, and what was said. named: a pattern that a refusal must hold, as it names the parameter.
    wanted: None if only a refusal will do; else what tells whether the result is right, or a warning's pattern."""
    try:
        with limited(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = call()
    except Hang:
        return "hang", ""
    except EXPECTED as error:
        line = str(error)
        return (
            "refused" if "\n" not in line and re.search(named, line) else "traceback"
        ), f"{type(error).__name__}: {line}"
    except Partial as error:
        return "partial", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    if isinstance(wanted, str):
        lines = [str(one.message) for one in said]
        return ("right" if any(re.search(wanted, line) for line in lines) else "silent"), "; ".join(lines)
    return ("right" if wanted is not None and wanted(found) else "silent"), ""


def keywords():
    """Every keyword of the library's functions with values of the wrong kind."""
    pipe = tiny.sd()
    eraser = rece.erase(pipe, "dog", rounds=1, relative=True, preserve=["cat"], progress=False)

    def erase(**given):
        return rece.erase(pipe, **{"concept": "dog", "relative": True, "progress": False, "preserve": ["cat"]} | given)

    def guard(**given):
        return rece.guard(pipe, **{"concept": "dog", "preserve": ["cat", "sun"], "progress": False} | given)

    def certify(**given):
        return rece.certify(pipe, **{"eraser": eraser, "concept": "dog"} | given)

    def debias(**given):
        label = {"labels": lambda images: ["cat"] * len(images), "attributes": ["cat", "sun"], "images": 2, "steps": 1}
        return rece.debias(pipe, **{"concept": "dog", "max_iterations": 1, "progress": False} | label | given)

    def generate(**given):
        fast = {"steps": 1, "batch_size": 2, "progress": False}
        return images.generate(pipe, **{"prompts": ["dog"], "seeds": [0]} | fast | given)

    def attack(name, **given):
        about = [{"name": "dog", "words": ["dog"], "held_out": ["hound"], "pairs": [("a dog", "a")]}]
        own = {"original": pipe, "concept": about}
        return attacks.run(name, pipe, **{"prompts": ["a dog"], "seeds": [0]} | own | given)

    def each(function, values, *names, also=()):
        for name in names:
            for value in (*values, *also):
                yield f"{function.__name__} {name}={value!r:.40}", lambda n=name, v=value: function(**{n: v}), name

    nested = [
        ("start", "lamb"),
        ("start", "erase_scale"),
        ("each", "lamb"),
        ("each", "erase_scale"),
        ("each", "derive_lamb"),
    ]
    for group, name in nested:
        for value in NUMBERS:
            yield (
                f"erase {group}.{name}={value!r:.40}",
                lambda g=group, n=name, v=value: erase(**{g: {n: v}}),
                f"{group}.{name}",
            )
    for group in ("start", "each"):
        for value in [v for v in NUMBERS if v not in (0, None)]:
            yield (
                f"erase {group}.preserve_scale={value!r:.40}",
                lambda g=group, v=value: erase(**{g: {"preserve_scale": v}}),
                group,
            )
        for value in (5, "x", {"nosuch": 1}, {"lamb": 1, "lam": 2}, None, [1]):
            yield f"erase {group}={value!r:.40}", lambda g=group, v=value: erase(**{g: v}), group
    yield from each(erase, COUNTS[2:] + [-1, "many"], "rounds")
    yield from each(erase, FLAGS, "anchored", "relative", "pooled", "progress")
    yield from each(erase, TEXTS + UNREAD, "concept")
    yield from each(erase, TEXTS[1:] + UNREAD[5:] + [["a", "b"], "dog", "a dog"], "target")
    yield from each(erase, LISTS, "preserve")
    yield from each(lambda **given: erase(rounds="auto", **given), LISTS, "others")
    yield from each(guard, TEXTS + UNREAD, "concept")
    yield from each(guard, TEXTS[1:] + UNREAD[5:] + [["a", "b"], "dog", "a dog"], "target")
    yield from each(guard, LISTS, "preserve")
    yield from each(guard, [5, [5], {"cat": ["x"]}, {"dog": "x"}, ["<|endoftext|>"], [""], "x"], "synonyms")
    yield from each(guard, [v for v in NUMBERS if v is not None], "mu")
    yield from each(guard, [v for v in COUNTS if v is not None], "rank")
    yield from each(guard, [-1, 2, math.nan, True, "1", [1]], "oblique")
    yield from each(guard, FLAGS, "pooled", "progress")
    yield from each(certify, TEXTS + UNREAD, "concept")
    yield from each(certify, TEXTS + UNREAD[5:], "target")
    yield from each(certify, LISTS, "others")
    yield from each(certify, [5, [5], {"dgo": ["x"]}, {"dog": "x"}, "x"], "synonyms")
    yield from each(certify, ["x.safetensors", 5, torch.eye(32), rece.Eraser(torch.eye(2))], "eraser")
    yield from each(certify, ["float", "int4", 5], "shipped")
    yield from each(debias, TEXTS + UNREAD, "concept")
    yield from each(debias, LISTS + [["cat"], ["cat", "cat"], ["cat", "sun", "cat"]], "attributes")
    yield from each(debias, [[math.nan] * 2, [0.5, 0.6], [1], [-1, 2], [math.inf, 0]], "desired")
    yield from each(debias, LISTS, "preserve")
    yield from each(debias, NUMBERS, "lamb", "edit_scale", "step_size")
    yield from each(debias, NUMBERS[1:], "max_diff", also=(5,))
    yield from each(debias, COUNTS, "images", "steps", "batch_size", "max_iterations")
    yield from each(debias, [v for v in NUMBERS if v != 0], "guidance", "preserve_scale")
    yield from each(generate, ["a", 5, [5], None, [], [None]], "prompts")
    yield from each(generate, ["7", [1.9], ["7"], [-1], [math.nan], [None], [True], [2**64], [], [1, 2]], "seeds")
    yield from each(generate, [math.nan, math.inf, "7", None, True, [7]], "guidance")
    yield from each(generate, COUNTS, "steps", "batch_size")
    yield from each(generate, [7, 8.5, -8, "64", math.nan], "height", "width")
    for name in attacks.names():
        for prompt, seeds in (("a", "7"), ([], []), (["a dog"], []), ("a dog", [0])):
            yield (
                f"attack {name} prompts={prompt!r} seeds={seeds!r}",
                lambda n=name, p=prompt, s=seeds: attack(n, prompts=p, seeds=s),
                "prompts",
            )
        yield f"attack {name} nosuch", lambda n=name: attack(n, nosuch=1), "nosuch"
    for value in (math.nan, math.inf, True):
        yield f"attack concept_vector eta={value}", lambda v=value: attack("concept_vector", eta=v), "eta"


def meant():
    """What looks like a mistake and is done, or told: each with what must be true of the result."""
    pipe = tiny.sd()
    small = {"relative": True, "progress": False}

    def map_of(*concept, **given):
        return rece.erase(pipe, *concept, **small | given).map

    yield "concept twice", lambda: map_of(["dog", "dog"]), "concept", None
    yield "concept twice in other letters", lambda: map_of(["dog", "DOG"]), "concept", None
    yield "two targets for one concept", lambda: map_of(["dog", " dog"], target=["cat", "sun"]), "concept", None
    yield "a full stop", lambda: map_of("dog."), "concept", "ends in '.'"
    yield "preserved and erased", lambda: map_of("dog", preserve=["dog"] * 1000), "preserve", "erased too"
    yield "300 rounds", lambda: map_of("dog", rounds=300), "rounds", "other texts move"
    yield "lambda of 1e9", lambda: map_of("dog", start={"lamb": 1e9}, each={"lamb": 1e9}), "lamb", "is left"
    yield "a billion rounds", lambda: map_of("dog", rounds=10**9), "rounds", None
    yield "lambdas whole numbers", lambda: map_of("dog", start={"lamb": 1}), "", lambda M: bool(M.isfinite().all())
    eraser = rece.erase(pipe, "dog", preserve=["cat"], **small)
    yield (
        "others the concept itself",
        lambda: rece.certify(pipe, eraser, "dog", others=["DOG", " dog"]),
        "",
        lambda c: not c.passed,
    )
    zero = rece.Eraser(torch.zeros(32, 32).double())
    yield (
        "a map that destroys all",
        lambda: rece.certify(pipe, zero, "dog", others=["cat"]),
        "",
        lambda c: not c.stayed,
    )

    def changed():
        one = tiny.sd()
        made = rece.erase(one, "dog", **small)
        made.apply(one)
        dict(one.unet.named_modules())["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"].weight.data.add_(1)
        made.remove(one)

    yield "weights trained between apply and remove", changed, "changed since", None

    def reloaded(folder):
        one = tiny.sd()
        before = {name: weight.clone() for name, weight in one.unet.state_dict().items()}
        made = rece.erase(one, "dog", **small)
        made.apply(one)
        one.unet.load_state_dict(before)
        export.save_folder(made, one, folder, "pipeline")

    with tempfile.TemporaryDirectory() as folder:
        yield "weights reloaded, then exported", lambda: reloaded(Path(folder, "out")), "changed since", None
        for dtype in (torch.int8, torch.bool, torch.float8_e4m3fn):
            yield f"a LoRA in {dtype}", lambda d=dtype: eraser.save_lora(folder, pipe=pipe, dtype=d), "dtype", None
            yield (
                f"weights in {dtype}",
                lambda d=dtype: export.save_weights(eraser, pipe, Path(folder, "w.safetensors"), d),
                "dtype",
                None,
            )
        large = rece.Eraser(torch.eye(32).double() * 1e6)
        yield (
            "a LoRA that overflows",
            lambda: large.save_lora(folder, pipe=pipe, dtype=torch.float16),
            "overflows",
            None,
        )
        yield "a LoRA's pipeline and folder swapped", lambda: eraser.save_lora(pipe, folder), "rank|folder", None

    other = tiny.sd()
    with torch.no_grad():
        other.text_encoder.get_input_embeddings().weight.normal_()
    yield "another text encoder of the same shape", lambda: eraser.apply(other), "text encoder", None
    many = eraser
    for _ in range(200):
        many = many @ rece.Eraser(
            torch.eye(32).double(), {"concepts": ["x"], "text_encoders": eraser.provenance["text_encoders"]}
        )
    yield "200 compositions, a list and no tower", lambda: many, "", lambda e: len(e.provenance["composed"]) == 201


def files_():
    """Files that are cut, changed by one bit, of another kind, or hostile, for every reader."""
    chance = random.Random(0)
    pipe = tiny.sd()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        eraser = rece.erase(pipe, "dog", relative=True, progress=False)
        eraser.save(place / "e.safetensors")
        eraser.save_lora(place, pipe=pipe)
        attempts = attacks.Attempts(["a dog"], [0], losses=[[1.0]])
        attempts.save(place / "a.safetensors")
        (place / "p.csv").write_text("case,prompt,seed,guidance\n0,a dog,5,7.5\n1,a cat,6,7.5\n", encoding="utf-8")
        readers = {
            "eraser": (place / "e.safetensors", Edit.load),
            "lora": (place / "pytorch_lora_weights.safetensors", lambda file: recover.recover(pipe, file)),
            "attempts": (place / "a.safetensors", attacks.Attempts.load),
            "show": (place / "e.safetensors", show.rows),
        }

        def same(found):
            return torch.equal(found.map, eraser.map) and found.provenance == eraser.provenance

        for kind, (source, read) in readers.items():
            whole = source.read_bytes()
            for _ in range(30):
                cut = place / f"cut{source.suffix}"
                at = chance.randrange(len(whole))

                def damaged(data, read=read, cut=cut):
                    cut.write_bytes(data)
                    return read(cut)

                yield f"{kind} cut at {at}", lambda part=whole[:at], d=damaged: d(part), "cut", None
                if kind == "eraser":
                    flipped = bytearray(whole)
                    flipped[at] ^= 1 << chance.randrange(8)
                    yield f"{kind} bit flipped at {at}", lambda f=bytes(flipped), d=damaged: d(f), "cut", same
            for data in (
                b"",
                b"PK\x03\x04",
                b"\x80\x04\x95",
                struct.pack("<Q", 2**63),
                struct.pack("<Q", 2) + b"{}",
                os.urandom(64),
            ):
                yield f"{kind} {data[:8]!r}", lambda x=data, d=damaged: d(x), "cut", None
            yield f"{kind} a folder", lambda r=read: r(place), "", None
            yield f"{kind} not there", lambda r=read: r(place / "nosuch.safetensors"), "nosuch", None

        def with_note(rece_note, name="n.safetensors", **tensors):
            save_file(tensors or {"map": torch.eye(4).double()}, place / name, {"rece": rece_note})
            return Edit.load(place / name)

        for note in ("[1]", "5", "null", '"x"', "{", "[" * 3000 + "]" * 3000):
            yield f"provenance {note[:20]}", lambda n=note: with_note(n), "n.safetensors", None
        odd = {
            "another tensor": {"map": torch.eye(4).double(), "zzz": torch.ones(3)},
            "nan": {"map": torch.full((4, 4), math.nan).double()},
            "no square": {"map": torch.ones(4, 3).double()},
            "whole numbers": {"map": torch.ones(4, 4).int()},
            "history of another shape": {"map": torch.eye(4).double(), "history.0000": torch.eye(3).double()},
            "history with nan": {"map": torch.eye(4).double(), "history.0000": torch.full((4, 4), math.nan).double()},
            "no map": {"pooled": torch.eye(4).double()},
        }
        for name, tensors in odd.items():
            yield f"eraser: {name}", lambda t=tensors: with_note("{}", **t), "n.safetensors", None
        for name, text in TABLES.items():

            def table(text=text):
                (place / "t.csv").write_text(text, encoding="utf-8")
                return prompts.read(place / "t.csv")

            yield f"prompts: {name}", table, "t.csv", None
        long = "x" * 200_000

        def longest():
            (place / "t.csv").write_text(f'{HEAD}"{long}",1,7\n', encoding="utf-8")
            return prompts.read(place / "t.csv").table

        yield "prompts: 200 kB", longest, "", lambda table: table.prompt[0] == long
        good = (config.root() / "params.yaml").read_text(encoding="utf-8")
        threshold = re.compile(r"threshold: [\d.]+")
        wrong = {
            "twice": good + "\nmodel: other\n",
            "text for a number": good.replace("n: 30", "n: thirty", 1),
            "percent": threshold.sub("threshold: 50", good),
            "nan": threshold.sub("threshold: .nan", good),
            "negative": threshold.sub("threshold: -1", good),
            "unknown": good + "\nnosuch: 1\n",
            "scalar": "5",
            "list": "[1]",
            "nothing": "",
            "tag": "!!python/object/apply:os.system ['true']",
            "no YAML": "a: [",
        }
        for name, text in wrong.items():

            def read(text=text):
                (place / "params.yaml").write_text(text, encoding="utf-8")
                return config.params(place / "params.yaml")

            yield f"params: {name}", read, "params.yaml", None
        for name, break_it in {
            "encoder lacks weights": lambda m: _drop(m / "text_encoder/model.safetensors", "mlp.fc1"),
            "unet lacks weights": lambda m: _drop(m / "unet/diffusion_pytorch_model.safetensors", "conv_in"),
            "encoder cut": lambda m: _cut(m / "text_encoder/model.safetensors"),
            "unet cut": lambda m: _cut(m / "unet/diffusion_pytorch_model.safetensors"),
            "no tokenizer.json": lambda m: (m / "tokenizer/tokenizer.json").unlink(),
            "no tokenizer": lambda m: [file.unlink() for file in (m / "tokenizer").iterdir()],
            "no model_index": lambda m: (m / "model_index.json").unlink(),
            "unknown class": lambda m: _write(m / "model_index.json", '"StableDiffusionPipeline"', '"NoSuch"'),
            "a module by name": lambda m: _write(m / "model_index.json", '"UNet2DConditionModel"', '"system"'),
            "no unet": lambda m: [file.unlink() for file in (m / "unet").iterdir()],
        }.items():

            def model(break_it=break_it):
                folder = Path(tempfile.mkdtemp(dir=place))
                pipe.save_pretrained(folder)
                break_it(folder)
                return loading.load(folder)

            yield f"model: {name}", model, "model", None


def _drop(file: Path, part: str) -> None:
    save_file({name: tensor for name, tensor in load_file(file).items() if part not in name}, file, {"format": "pt"})


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _write(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def commands():
    """Command lines that are wrong: 1 or 2 comes back, after one line, and nothing is written."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        tiny.sd().save_pretrained(place / "m")
        rece.erase(tiny.sd(), "dog", relative=True, progress=False).save(place / "e.safetensors")
        save_file({"\x1b]0;x\x07": torch.ones(2)}, place / "esc.safetensors", {"rece": '{"a\\u001b[31m": "\\nfake"}'})
        m, e, o = place / "m", place / "e.safetensors", place / "o.safetensors"
        places = {"m": m, "e": e, "o": o, "there": place, "typo": place / "typo", "odd": place / "esc.safetensors"}
        lines = [shlex.split(line.format(**places)) for line in COMMANDS.strip().splitlines()] + [
            [],
            ["erase", m, "", "-o", o],
            ["erase", m, "d\udcffg", "-o", o],
        ]
        there = sorted(place.rglob("*"))

        def run(line):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(word) for word in line])
            said = err.getvalue() + (out.getvalue() if code else "")
            assert "Traceback" not in said and "\x1b" not in out.getvalue() + err.getvalue(), said
            if new := sorted(set(place.rglob("*")) - set(there)):
                raise Partial(f"{new[0].name} was written")
            if code not in (1, 2):
                return code
            raise ValueError(said.strip().splitlines()[-1] if code == 2 else said.strip())

        for line in lines:
            shown = " ".join(str(word).replace(str(place), "…") for word in line)
            done = (lambda code: code == 0) if line == ["show", str(place / "esc.safetensors")] else None
            yield f"rece {shown}"[:90], lambda one=line: run(one), ".", done


WRITING = """
import sys
from pathlib import Path
import tiny
import rece
from rece.sharing import export

pipe = tiny.sd()
made = [rece.erase(pipe, concept, relative=True, progress=False) for concept in ("dog", "cat")]
made[0].save(Path(sys.argv[1], "k.safetensors"))
print("ready", flush=True)
while True:
    for eraser in made:
        eraser.save(Path(sys.argv[1], "k.safetensors"))
        export.save_folder(eraser, pipe, Path(sys.argv[1], "f"), "lora")
"""


def full():
    """A disk that is full after so many bytes of a file: what was there before stays, and nothing else is left."""
    pipe = tiny.sd()
    old, new = (rece.erase(pipe, name, relative=True, progress=False) for name in ("dog", "cat"))
    found, table = attacks.Attempts(["a dog"], [0], losses=[[1.0]]), pd.DataFrame({"prompt": ["a dog"], "seed": [0]})
    writers = {
        "eraser": lambda there, eraser: eraser.save(there / "e.safetensors"),
        "lora": lambda there, eraser: eraser.save_lora(there, pipe=pipe),
        "weights": lambda there, eraser: export.save_weights(eraser, pipe, there / "w.safetensors"),
        "kohya": lambda there, eraser: export.save_kohya(eraser, pipe, there / "k.safetensors"),
        "attempts": lambda there, _: found.save(there / "a.safetensors"),
        "image": lambda there, _: images.draw(pipe, table, there / "d", steps=1, batch_size=2, progress=False),
    }
    for kind in ("lora", "weights", "eraser", "pipeline"):
        writers[f"folder {kind}"] = lambda to, eraser, kind=kind: export.save_folder(eraser, pipe, to / "f", kind)

    def read(folder: Path) -> dict[str, bytes]:
        inside = (file for file in sorted(folder.rglob("*")) if file.is_file())
        return {str(file.relative_to(folder)): file.read_bytes() for file in inside}

    for (name, write), share, again in itertools.product(writers.items(), (0.0, 0.5, 0.99), (False, True)):
        if name == "image" and again:
            continue  # an image that is there is not drawn again

        def cut_short(write=write, share=share, again=again):
            with tempfile.TemporaryDirectory() as place:
                there, other = Path(place, "there"), Path(place, "other")
                there.mkdir(), other.mkdir()
                write(other, new)
                before = {}
                if again:
                    write(there, old)
                    before = read(there)
                try:
                    with room(int(share * max(map(len, read(other).values())))):
                        write(there, new)
                finally:
                    left = read(there)
                    if left != before:
                        raise Partial(f"{sorted(left.keys() ^ before.keys()) or 'another content'} is there")

        yield f"{name} to {share:.0%}{', over an old one' if again else ''}", cut_short, "(large|space)", None


@contextlib.contextmanager
def room(most: int):
    """No file may grow beyond `most` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def faults():
    """Processes that are killed while they write: what is there is whole."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    chance = random.Random(1)
    for n, how in itertools.product(range(8), (signal.SIGKILL, signal.SIGTERM)):

        def killed(how=how, n=n):
            with tempfile.TemporaryDirectory() as place:
                process = subprocess.Popen(
                    [sys.executable, "-c", WRITING, place], stdout=subprocess.PIPE, env=environment
                )
                process.stdout.readline()
                time.sleep(0.2 + chance.random() / 2)
                process.send_signal(how)
                process.wait()
                rece.Eraser.load(Path(place, "k.safetensors"))
                folder = Path(place, "f")
                concept = dict(show.rows(folder))["erases"].split("'")[1] if folder.exists() else ""
                if concept and concept not in (folder / "README.md").read_text(encoding="utf-8"):
                    raise Partial("the card of one eraser lies beside another one's weights")

        yield f"{how.name} while saving, {n + 1}", killed, "", lambda _: True


def run(kinds: list) -> pd.DataFrame:
    found = []
    for kind in kinds:
        start = time.perf_counter()
        for name, call, named, *wanted in kind():
            how, said = outcome(call, named, *wanted)
            found.append({"kind": kind.__name__.strip("_"), "case": name, "ended": how, "said": said})
            if how in BAD:
                print(f"{how:>9}  {kind.__name__.strip('_')}: {name}  {said[:160]!r}", flush=True)
        print(f"{kind.__name__.strip('_')}: {time.perf_counter() - start:.0f} s", flush=True)
    return pd.DataFrame(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = {kind.__name__.strip("_"): kind for kind in (keywords, meant, files_, commands, full, faults)}
    parser.add_argument("kinds", nargs="*", choices=[*known, []], help="by default all")
    asked = parser.parse_args().kinds or list(known)
    loading.quiet()
    table = run([known[name] for name in asked])
    print(table.groupby(["kind", "ended"], sort=False).size().unstack(fill_value=0).to_string())
    print(f"{len(table)} cases, {table.ended.isin(BAD).sum()} of them bad")
    sys.exit(int(table.ended.isin(BAD).any()))
