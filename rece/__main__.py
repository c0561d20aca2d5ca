"""The command line: `rece --help`, or `python -m rece --help`.

Only light modules are imported here. Each command imports torch and the rest when it runs, so that --help and wrong
arguments are answered at once.
"""

import inspect
import logging
import math
import os
import re
import signal
import sys
import warnings
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperCommand
from typer.main import get_command

from rece.presets import PRESETS

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)  # raised with a line that says what to do
REACHED = 1e-6  # share of a target's distance below which a bound is rounding
PARTS_PER_WORKER = 4  # of a drawing, so that a fast worker takes more of them than a slow one


def _number(value) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# The keywords of rece.erase, what each must be, and whether it is. A wrong value is refused before torch is imported.
POSITIVE = "start.lamb start.erase_scale each.lamb each.erase_scale each.derive_lamb"
RULES = (
    (POSITIVE, "a positive number", lambda value: _number(value) and value > 0),
    ("start.preserve_scale each.preserve_scale", "a number, 0 or more", _number),
    ("preserve start.preserve each.preserve others", "a list of texts, such as [cat, car]", _texts),
    ("anchored relative pooled progress", "true or false", lambda value: isinstance(value, bool)),
    ("target", "a text or a list of texts", lambda value: isinstance(value, str) or _texts(value)),
    (
        "rounds",
        'a whole number, 0 or more, or "auto"',
        lambda value: value == "auto" or type(value) is int and value >= 0,
    ),
    ("each.reg", "a text", lambda value: isinstance(value, str)),
    ("start.tokens", '"rest" or "last"', lambda value: value in ("rest", "last")),
)
KEYWORDS = {name: (meaning, holds) for names, meaning, holds in RULES for name in names.split()}


SHOWN = 5  # texts of a report that a line holds
CERTIFIED = {  # what `rece certify` says of its columns
    "distance": "no prompt's token comes closer than this to the last word of the concept.",
    "embedding": "no embedding whatever comes closer than this. Lengths above 1e10 times the word's do not count.",
    "shipped": "no embedding up to ten times as long as the word's comes closer, with weights as a file holds them.",
}


class Command(TyperCommand):
    """A command whose options for lists take several values: `--preserve cat car` is `--preserve cat --preserve car`.

    The values end at the next word that starts with a dash.
    """

    def parse_args(self, ctx, args):
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread, option = [], None
        for n, word in enumerate(args):
            if word == "--":
                spread += args[n:]
                break
            if word.startswith("-"):
                option = word.partition("=")[0]
                option = option if option in lists else None
            elif option and args[n - 1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


app = typer.Typer(
    help="Erase concepts from text-to-image models in closed form.",
    epilog="Each command has its own --help. Exit codes: 0 done, 1 error, 2 wrong arguments, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


# The types of a command's parameters, with what typer must know of them.
def _argument(kind: type, metavar: str, meaning: str):
    return Annotated[kind, typer.Argument(metavar=metavar, help=meaning)]


def _option(kind: type, meaning: str, metavar: str = "TEXT", **more):
    metavar += " …" if kind == list[str] else ""
    return Annotated[kind | None, typer.Option(metavar=metavar, help=meaning, **more)]


def _flag(name: str, meaning: str, **more):
    return Annotated[bool, typer.Option(name, help=meaning, **more)]


EraserFile = _argument(Path, "ERASER", "a file that `erase`, `guard` or `import` wrote")
Concepts = _argument(list[str], "CONCEPT", "what to erase; several are one edit")
PreserveFile = _option(Path, "texts to keep, one per line", "FILE")
Output = Annotated[Path, typer.Option("--output", "-o", help="where to write")]
Force = _flag("--force", "overwrite what is there")
Dtype = Annotated[Literal["float32", "float16", "bfloat16", "float64"], typer.Option(help="type of the weights")]
Licence = _option(str, "for the card: the base model's licence, e.g. openrail++")
Base = _option(str, "for the card: hub id of the base model, if MODEL is a folder")
Measured = _option(Path, "a file of `rece evaluate -o`, whose numbers go into the card", "FILE")


def _load(
    model: _argument(str, "MODEL", "a pipeline folder, or a hub id together with --revision"),
    revision: _option(str, "full commit hash of the hub id", "HASH") = None,
    dtype: Dtype = "float32",
    device: _option(str, "cpu, cuda, cuda:1, …; by default the GPU if there is one") = None,
):
    """The pipeline. A command that asks for `load` has these parameters, see `_command`."""
    from rece import loading

    loading.quiet()
    if Path(model, "rece.json").is_file():
        warnings.warn(f"{model} holds a model that was edited before; `rece show {model}` says how", stacklevel=1)
    return loading.load(model, revision=revision, dtype=dtype, device=device)


def _command(name: str, *examples: str):
    """Registers a command. Its docstring is its help, and the examples stand below the options.

    Where the function has a parameter `load`, the command line has the parameters of `_load`, and the function gets
    them as a dict.
    """
    epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in examples)

    def register(function):
        own = inspect.signature(function).parameters
        shared = inspect.signature(_load).parameters if "load" in own else {}

        def command(debug: _flag("--debug", "show the traceback of an error") = False, **given):  # `main` reads debug
            if shared:
                given["load"] = {name: given.pop(name) for name in shared}
            function(**given)

        named = {**own, **shared, **inspect.signature(command).parameters}
        kept = [one.replace(kind=one.KEYWORD_ONLY) for name, one in named.items() if name not in ("load", "given")]
        kept.sort(key=lambda one: one.name != "model")  # the first argument
        command.__signature__ = inspect.Signature(kept)
        command.__annotations__ = {one.name: one.annotation for one in kept}
        return app.command(name, cls=Command, help=function.__doc__, epilog=epilog)(command)

    return register


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"must be K/N with K from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])


def _version(asked: bool) -> None:
    if asked:
        try:
            print(metadata.version("rece"))
        except metadata.PackageNotFoundError:
            print("unknown: rece runs from a folder and is not installed")
        raise typer.Exit()


@app.callback()
def _rece(version: _flag("--version", "print the version", callback=_version, is_eager=True) = False) -> None:
    pass


@_command(
    "erase",
    "rece erase data/emoji-diffusion dog -o dog.safetensors",
    "rece erase data/emoji-diffusion dog bus -o two.safetensors --preserve cat car --rounds 2",
    "rece erase data/emoji-diffusion dog -o esd.safetensors --method esd_x --set iterations=50 lr=1e-4 steps=10",
)
def erase(
    load: dict,
    concept: Concepts,
    output: Output,
    preset: _option(str, f"settings for a kind of concept: {', '.join(PRESETS)}", "NAME") = None,
    method: _option(str, "a file of rece/methods, whose numbers are given by --set", "NAME") = "rece",
    target: _option(list[str], 'what to draw instead: one, or one each (default " ")') = None,
    preserve: _option(list[str], "texts to keep") = None,
    preserve_file: PreserveFile = None,
    rounds: _option(str, 'how many rounds of RECE after UCE (default 3; 0 is UCE alone), or "auto"') = None,
    others: _option(list[str], "innocent concepts for --rounds auto to compare with") = None,
    anchored: _flag("--anchored", "start every round at the original weights") = False,
    relative: _flag("--relative", "multiply every lambda by the size of the model's text embeddings") = False,
    lamb: _option(float, "lambda of each round (default 0.1)", "NUMBER") = None,
    preserve_scale: _option(float, "weight of the kept texts in each round (default 0.1)", "NUMBER") = None,
    derive_lamb: _option(float, "lambda of the derived embedding (default 0.1)", "NUMBER") = None,
    start_lamb: _option(float, "lambda of UCE (default 0.5)", "NUMBER") = None,
    set: _option(list[str], "another keyword of rece.erase, e.g. start.tokens=last pooled=false", "NAME=VALUE") = None,
    force: Force = False,
) -> None:
    """Compute the eraser of one or more concepts.

    With --method an edit of another kind: changed weights, or a hook that acts while the model runs.
    """
    given = {"target": _one(target), "preserve": _kept(preserve, preserve_file), "others": others}
    given |= {"start.lamb": start_lamb}
    given |= {"each.lamb": lamb, "each.preserve_scale": preserve_scale, "each.derive_lamb": derive_lamb}
    given |= {"rounds": rounds and _value(rounds), "anchored": anchored or None, "relative": relative or None}
    settings = _settings(given, set or [], own=method == "rece")
    if preset is not None:
        if method != "rece":
            raise ValueError("--preset has numbers of rece.erase: leave out --method")
        settings = _preset(preset, settings)
    _free(load, output, ".safetensors", force)
    from rece import methods

    methods.check(method, settings)
    pipe = _load(**load)
    _spelt(pipe, concept)
    made = methods.run(method, pipe, concept, **settings)
    told = _reported(made, pipe) if made.kind == "map" else []
    _save(made, load, output)
    for line in told:
        _say(line)


@_command(
    "guard",
    "rece guard data/emoji-diffusion dog -o dog.safetensors",
    "rece guard data/emoji-diffusion dog -o dog.safetensors --synonyms puppy hound --preserve-file words.txt --mu 1",
)
def guard(
    load: dict,
    concept: Concepts,
    output: Output,
    synonyms: _option(list[str], "further texts of one concept; of several, give them as concepts") = None,
    target: _option(list[str], "what to draw instead: one, or one each (default: the nearest that is allowed)") = None,
    preserve: _option(list[str], "texts to keep (default: some twelve hundred everyday words)") = None,
    preserve_file: PreserveFile = None,
    mu: _option(
        float,
        "a larger mu guards more and moves other texts more (default: the largest that moves them little enough)",
        "NUMBER",
    ) = None,
    rank: _option(
        int, "how many directions to guard (default: one per concept, or a few more)", "NUMBER", min=1
    ) = None,
    oblique: _option(
        float,
        "0 projects orthogonally, 1 sends the concept to its target (default 0, or 1 with --target)",
        "NUMBER",
        min=0,
        max=1,
    ) = None,
    force: Force = False,
) -> None:
    """Compute the guarded eraser: no embedding is answered nearer to a concept than its own name."""
    settings = {"synonyms": synonyms, "target": _one(target), "preserve": _kept(preserve, preserve_file)}
    if synonyms and len(concept) > 1:
        raise ValueError("--synonyms are those of one concept: of several, give them as concepts too")
    if mu is not None and not (_number(mu) and mu > 0):
        raise ValueError(f"mu must be a positive number, not {mu!r}")
    _free(load, output, ".safetensors", force)
    import rece

    pipe = _load(**load)
    _spelt(pipe, concept)
    made = rece.guard(pipe, concept, **settings, mu=mu, rank=rank, oblique=oblique)
    _save(made, load, output)
    report, mu = made.provenance["report"], made.provenance["mu"]
    guards = _shares(report["guard"], key=lambda one: one[1])
    _say(f"guard: {guards}. No embedding comes nearer to a concept than this share of its distance to its target.")
    moved = _shares(report["moved"], key=lambda one: -one[1])
    nearest = f"; of those nearest to a concept: {moved}" if moved else ""
    _say(
        f"drift: preserved texts move {report['drift']:.2f} of their distance to ' ' on average (mu {mu:.3g}){nearest}"
    )


@_command("apply", "rece apply data/emoji-diffusion dog.safetensors -o without-dog")
def apply(
    load: dict,
    eraser: EraserFile,
    output: Output,
    licence: Licence = None,
    base_model: Base = None,
    evaluation: Measured = None,
    force: Force = False,
) -> None:
    """Write the whole edited pipeline to a folder."""
    _export("pipeline", load, eraser, output, force, evaluation, licence=licence, base_model=base_model)


@_command(
    "lora",
    "rece lora data/emoji-diffusion dog.safetensors -o dog-lora",
    "rece lora data/emoji-diffusion dog.safetensors -o dog-comfyui.safetensors",
)
def lora(
    load: dict,
    eraser: EraserFile,
    output: Output,
    rank: _option(int, "cut the edit to this rank", "NUMBER") = None,
    licence: Licence = None,
    base_model: Base = None,
    evaluation: Measured = None,
    force: Force = False,
) -> None:
    """Write the edit as a LoRA: to a folder for diffusers, or to one .safetensors file for ComfyUI and A1111."""
    if output.suffix == ".safetensors":
        if licence or base_model or evaluation:
            raise ValueError("--licence, --base-model and --evaluation belong to a folder's card: one file has none")
        _export("kohya", load, eraser, output, force, rank=rank)
        return
    _export("lora", load, eraser, output, force, evaluation, rank=rank, licence=licence, base_model=base_model)


@_command("weights", "rece weights data/emoji-diffusion dog.safetensors -o dog-weights.safetensors")
def weights(load: dict, eraser: EraserFile, output: Output, force: Force = False) -> None:
    """Write the edited layers alone, in UCE's layout, to a file."""
    _export("weights", load, eraser, output, force)


@_command("import", "rece import data/emoji-diffusion uce.safetensors -o dog.safetensors")
def recover(
    load: dict,
    weights: _argument(Path, "WEIGHTS", "the other project's .safetensors or .pt file"),
    output: Output,
    tolerance: _option(float, "share of the edit that the eraser may lack (default 0.05)", "NUMBER") = None,
    approximate: _flag("--approximate", "write the eraser even if it lacks more") = False,
    force: Force = False,
) -> None:
    """Recover the eraser behind another project's weights."""
    _free(load, output, ".safetensors", force, weights)
    if not weights.is_file():
        raise FileNotFoundError(f"no weights file at {weights}")
    from rece.sharing import recover as sharing

    tolerance = sharing.TOLERANCE if tolerance is None else tolerance
    found = sharing.recover(_load(**load), weights, tolerance=tolerance)
    print(f"residual {found.residual:.2g} of the edit (rounding alone {found.rounding:.1g}, tolerance {tolerance:g})")
    print(f"layers that read the prompt: {found.layers.given.sum()} of {len(found.layers)} in the file")
    print(f"other weights: {len(found.unexplained)} changed")
    if not found.exact and not approximate:
        raise ValueError("nothing written, as the file is more than an eraser; --approximate writes the best one")
    found.eraser.save(output)
    _say(f"{output}: {'the' if found.exact else 'the best'} eraser, rank {found.eraser.rank}")


@_command(
    "certify",
    "rece certify stable-diffusion-v1-4 nudity.safetensors --others car tree --synonyms naked",
    "rece certify stable-diffusion-v1-4 esd.pt nudity",
)
def certify(
    load: dict,
    words: _argument(
        list[str],
        "[FILE] CONCEPT",
        "an eraser, edited weights or a LoRA, then concepts. Without the file the model is certified as it is. "
        "Without concepts, those that the file says it erases are taken",
    ),
    target: _option(list[str], 'what was drawn instead (default: as the eraser says, or else " ")') = None,
    others: _option(list[str], "innocent concepts to compare with") = None,
    synonyms: _option(list[str], "other words for the concept") = None,
) -> None:
    """Bound how close any prompt comes to a concept. A bound that is not passed is a result: the exit code is 0."""
    _known(load)
    import rece
    from rece.eraser import targets
    from rece.sharing import recover as sharing

    file = sharing.edit_file(words[0])
    kind, known = sharing.described(file) if file else (None, {})
    sent = targets(known)
    concepts = (words[1:] if file else words) or list(sent)
    if not concepts:
        raise ValueError("CONCEPT must be given: the file does not say what it erases")
    if kind == "hooks":
        raise ValueError(f"FILE: {file} holds hooks, which act while the model runs: there are no weights to certify")
    target = _one(target or [sent.get(text, " ") for text in concepts])
    eraser, shipped = (rece.Eraser.load(file), load["dtype"]) if kind == "map" else (None, None)
    pipe, alone = _load(**load), bool(file) and kind != "map"
    if alone:
        shipped = rece.Edit.load(file).readers(pipe) if kind == "weights" else sharing.edited_layers(pipe, file)
    asked = {"target": target, "others": others, "synonyms": synonyms, "shipped": shipped}
    made = rece.certify(pipe, eraser, concepts, **asked)
    columns = ["concept", "distance", "embedding", "shipped", "edited", "target", "other", "nearest", "synonym"]
    table = made.words[columns].dropna(axis=1, how="all")
    if alone:  # weights are no map: what holds is what is said of them as they are
        table = table.drop(columns=["distance", "embedding", "edited"], errors="ignore")
    for row in table.to_string(index=False, float_format="{:.4g}".format).splitlines():
        _say(row)
    bounds = [name for name in CERTIFIED if name in table]
    for name in bounds:
        print(f"{name}: {CERTIFIED[name]}")
    least = ", ".join(f"{name} {(table[name] / table.target).min():.3g}" for name in bounds)
    print(f"share: of the distance to the target, at least: {least}.")
    if "embedding" in table and not made.guarded > REACHED:
        reason = "the map is invertible" if eraser else "nothing was edited"
        print(f"Some embedding is answered exactly as a concept was: {reason}.")
    if alone and not (table.shipped / table.target).min() > REACHED:
        print("Some embedding is answered as a concept was: these weights can be got round.")
    if others and "distance" in table:
        far = "yes. No prompt comes as close to a concept as the nearest of --others is."
        far = far if made.passed else "no. That no prompt comes as close as --others is not proven."
        print(f"passed: {far}")
        if not made.stayed:
            print("The edit moves the nearest of --others more than half of the way to a concept: it is not kept.")


@_command(
    "draw",
    'rece draw data/emoji-diffusion "a dog in noto style" -o dog.png --seed 3 --eraser dog.safetensors',
    "rece draw data/emoji-diffusion prompts.csv -o drawings",
)
def draw(
    load: dict,
    prompts: _argument(str, "PROMPT|FILE", "a prompt, or a csv with the columns prompt and seed"),
    output: Annotated[Path, typer.Option("--output", "-o", help="a .png of one prompt, or a folder for a csv")],
    seed: _option(int, "of the noise, for one prompt (default 0)", "NUMBER") = None,
    eraser: _option(Path, "apply this eraser first", "FILE") = None,
    scheduler: _option(str, "such as LMSDiscreteScheduler; by default the model's own", "CLASS") = None,
    steps: Annotated[int, typer.Option(min=1, help="of the scheduler")] = 50,
    guidance: Annotated[float, typer.Option(help="where the csv has none")] = 7.5,
    batch_size: Annotated[int, typer.Option(min=1, help="even; halved when memory runs out")] = 8,
    bf16: _flag("--bf16", "compute in bfloat16 where the device does so by itself") = False,
    quiet: _flag("--quiet", "no progress bar") = False,
    part: _option(tuple, "draw only the K-th of N parts, K from 1", "K/N", parser=_part) = None,
    workers: _option(int, "processes on this machine, one GPU each (Dask)", "NUMBER", min=1) = None,
    scheduler_file: _option(str, "of a running Dask scheduler", "FILE") = None,
    force: _flag("--force", "overwrite the .png that is there") = False,
) -> None:
    """Draw one picture of a prompt, or a folder of pictures from a csv file.

    The folder gets <case>.png for each line of the file. The same command again draws only what is missing.
    """
    is_table = prompts.endswith(".csv") or os.path.isfile(prompts)  # Path's fails for a long prompt
    shared = {"--part": part, "--workers": workers, "--scheduler-file": scheduler_file}
    shared = [name for name, value in shared.items() if value is not None]
    if len(shared) > is_table:
        reason = "only one of them can be given" if is_table else "only a csv file can be shared: leave it out"
        raise typer.BadParameter(f"{' and '.join(shared)}: {reason}")
    if is_table and seed is not None:
        raise typer.BadParameter("--seed belongs to one prompt: the seeds of a csv file are in the file")
    if is_table and output.suffix == ".png":
        raise ValueError(f"-o must be a folder, as a csv file gives many pictures ({prompts} is a file here)")
    _free(load, output, "" if is_table else ".png", force or is_table, eraser)
    from PIL import Image

    from rece import cluster, files, images, loading
    from rece.sharing.prompts import read

    load |= {"scheduler": scheduler, "eraser": eraser}
    settings = {"steps": steps, "guidance": guidance, "bf16": "auto" if bf16 else False, "progress": not quiet}
    loading.quiet()
    if not is_table:
        pipe = loading.load(**load)
        _cut(pipe, [prompts])
        (image,) = images.generate(pipe, [prompts], [seed or 0], batch_size=1, **settings)
        with files.replacing(output) as file:
            Image.fromarray(image).save(file, "png")
        _say(output)
        return
    table, repairs = read(prompts)
    for repair in repairs:
        _tell(f"note: {prompts}: {repair}")
    settings |= {"batch_size": batch_size}
    if workers is None and scheduler_file is None:
        pipe = loading.load(**load)
        _cut(pipe, list(table.prompt))
        images.draw(pipe, table, output, part=part or (1, 1), **settings)
    else:
        try:
            from distributed import Client
        except ImportError:
            raise ImportError("--workers and --scheduler-file need Dask: pip install distributed") from None
        logging.getLogger("distributed").setLevel(logging.WARNING)
        with cluster.local_cluster(workers) if workers else nullcontext() as local:
            with Client(local, scheduler_file=scheduler_file) as client:
                count = workers or max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
                cluster.draw_parts(load, table, output, client, PARTS_PER_WORKER * count, **settings)
    _say(output)


@_command(
    "arena",
    "rece arena dog-lora/pytorch_lora_weights.safetensors --concept dog --by 'A. Researcher'",
    "rece arena my_method.py",
)
def arena(
    file: _argument(Path, "FILE", "an eraser, a LoRA, weights, a folder of a UNet or text encoder, or a Python file"),
    concept: _option(str, "what a file of weights erases, an object or style of data/concepts.yaml") = None,
    by: _option(str, "who made it, kept with its rows") = "",
    note: _option(str, "how it was made, kept with its rows") = "",
) -> None:
    """Measure an outside eraser, or attack, beside the arena's rows. A Python file is run: read it before.

    In a checkout of the repository; at most ten minutes on two cores. A Python file has one function: `erase`, as the
    files of rece/methods, or `attack`, as those of rece/attacks.
    """
    from rece import loading
    from rece.study import entry

    loading.quiet()
    rows, there = entry.score(file, concept, by, note)
    for row in rows.to_string(index=False, float_format="{:.2f}".format, na_rep="-").splitlines():
        _say(row)
    _say(there)


@_command(
    "evaluate",
    "rece evaluate data/emoji-diffusion dog.safetensors dog --judge data/judge --steps 10 --guidance 4 -o dog.json",
    "rece evaluate stable-diffusion-v1-4 nudity.safetensors nudity --judge nudenet --synonyms naked nude",
    "rece evaluate stable-diffusion-v1-4 church.safetensors church --judge clip-vit-large-patch14 --others house tree",
)
def evaluate(
    load: dict,
    file: EraserFile,
    concept: _argument(str, "CONCEPT", "what it erases"),
    judge: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="who judges a picture: nudenet, a folder of ours, a CLIP's folder or hub id"
        ),
    ],
    judge_revision: _option(str, "of a CLIP on the hub: its full commit hash", "HASH") = None,
    synonyms: _option(list[str], "other words for the concept") = None,
    others: _option(list[str], "texts to keep; a CLIP tells the concept from these") = None,
    attacks: _option(list[str], "which attacks (default: plain synonym closed_form unlearndiff inversion)") = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a .json for the result, which `apply` and `lora` read")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="of the scheduler")] = 25,
    guidance: Annotated[float, typer.Option(help="of the pictures")] = 7.5,
    batch_size: Annotated[int, typer.Option(min=1, help="even")] = 4,
    force: Force = False,
) -> None:
    """Attack an edit at small budgets, and say what it leaves, what it keeps, and what is certain.

    Minutes on the embedded model, hours on Stable Diffusion without a GPU.
    """
    if output is not None:
        _free(load, output, ".json", force, file)
    _known(load)
    from rece import judges, loading
    from rece.edits import Edit
    from rece.study import evaluating

    unknown = [name for name in attacks or [] if name not in evaluating.QUICK]
    if unknown:
        raise ValueError(f"--attacks must be some of {', '.join(evaluating.QUICK)}, not {unknown[0]!r}")
    if judge == "nudenet":
        settings = {"name": "nudenet"}
    elif (Path(judge) / "labels.json").is_file():
        settings = judge
    else:
        if not others:
            raise ValueError(f"--judge: {judge!r} is no folder with a labels.json, and a CLIP needs --others")
        settings = {"name": "clip", "labels": [concept, *(others or [])], "model": judge, "revision": judge_revision}
    loading.quiet()
    budgets = {name: evaluating.QUICK[name] for name in attacks or evaluating.QUICK}
    how = {"steps": steps, "guidance": guidance, "batch_size": batch_size}
    made, judge = Edit.load(file), judges.load(settings)
    found = evaluating.evaluate(
        _load(**load), made, concept, judge, synonyms=synonyms or (), others=others, budgets=budgets, **how
    )
    columns = ["attack", "n", "rate", "low", "high"]
    for row in found.results[columns].to_string(index=False, float_format="{:.2f}".format).splitlines():
        _say(row)
    for near, part in found.kept.groupby("near", sort=False) if len(found.kept) else ():
        which = "nearest others" if near else "further others"
        _say(f"{which}: drawn {part.before.mean():.2f} before, {part.after.mean():.2f} after ({', '.join(part.text)})")
    if found.certificate is not None:
        guarded, prompts = found.certificate.guarded, found.certificate.relative
        _say(f"certificate: no embedding comes nearer to the concept than {guarded:.2f} of its distance to the target")
        if math.isfinite(prompts):
            _say(f"certificate of prompts: no prompt comes nearer than {prompts:.2f} of it")
    _say("A rate is a lower bound on what an attacker with a larger budget reaches.")
    if output is not None:
        found.save(output)
        _say(output)


@_command("push", "rece push dog-lora me/without-dog")
def push(
    folder: _argument(Path, "FOLDER", "with its README.md"),
    repo_id: _argument(str, "REPO_ID", "owner/name; made if it does not exist"),
    public: _flag("--public", "everyone may see it") = False,
    branch: _option(str, "made if it does not exist; by default main", "NAME") = None,
) -> None:
    """Upload a folder that `apply` or `lora` wrote to the hub, as a private repository."""
    from rece.sharing import export

    _say(export.push_to_hub(folder, repo_id, private=not public, revision=branch))


@_command("show", "rece show dog.safetensors", "rece show dog-lora")
def show(
    file: _argument(Path, "FILE", "an eraser, a LoRA, edited weights, or a folder of `apply` or `lora`"),
) -> None:
    """Print what a file of ours erases, and how it was made."""
    from rece.sharing import show as reader

    rows = reader.rows(file)
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        _say(f"{name:<{wide}}  {value}")


def _free(load: dict, output: Path, suffix: str, force: bool, *inputs: Path | None) -> None:
    """Raises ValueError or OSError, before torch is imported, if there is no model or the output may not be written.

    suffix: of the output, "" for a folder. inputs: what the command reads beside the model. It must not be replaced.
    """
    if suffix and output.suffix != suffix:
        raise ValueError(f"-o must be a file name that ends in {suffix}, not {str(output)!r}")
    if output.exists() and output.is_dir() == bool(suffix):
        raise FileExistsError(f"-o: {output} is a {'folder' if suffix else 'file'}: choose another name")
    for name in filter(None, (load["model"], *inputs)):
        source = Path(name).resolve()
        if source.exists() and output.resolve().is_relative_to(source):
            raise ValueError(f"-o: {output} is or lies in {name}, which the command reads: choose another place")
    if output.exists() and not force and (suffix or any(output.iterdir())):
        raise FileExistsError(f"-o: {output} exists: choose another name, or overwrite it with --force")
    _known(load)


def _known(load: dict) -> None:
    """Raises FileNotFoundError, before torch is imported, if the model can only be a folder, and there is none."""
    model = load["model"]
    if load["revision"] is None and not Path(model).is_dir():
        hub = "; for a model of the hub, give its full commit hash with --revision" if model.count("/") == 1 else ""
        raise FileNotFoundError(f"MODEL: there is no folder {model!r}{hub}")


def _save(eraser, load: dict, output: Path) -> None:
    """Write an eraser that was just made, and say so."""
    if load["revision"] is not None:
        eraser.provenance["revision"] = load["revision"]
    eraser.save(output)
    rank = f", rank {eraser.rank}" if eraser.kind == "map" else ""
    _say(f"{output}: {eraser}{rank}")


def _reported(made, pipe) -> list[str]:
    """What an eraser leaves, see `Eraser.report`, in two lines. It is noted in its provenance too."""
    found = made.report(pipe)
    most = dict(sorted(found["moved"].items(), key=lambda one: -one[1])[:SHOWN])
    made.provenance["report"] = found | {"moved": most}
    left, moved = (_shares(some, key=lambda one: -one[1]) for some in (found["left"], most))
    return [
        f"left: {left}. 1 is untouched, 0 has gone to the target.",
        f"drift: other texts move {found['drift']:.2f} of their distance to ' ' on average; most of all {moved}",
    ]


def _cut(pipe, prompts: list[str]) -> None:
    """Tell of prompts whose end the model does not read. Raises ValueError for bytes that are no text."""
    from rece import texts

    for prompt in prompts:
        if not prompt.isascii() and prompt != prompt.encode(errors="ignore").decode():
            raise ValueError(f"prompt: {ascii(prompt)[:60]} holds bytes that are no text in UTF-8: leave them out")
    cut = [prompt for prompt in prompts if texts.beyond(pipe, prompt)]
    if cut:
        first = " ".join(cut[0].split())[:60]
        _tell(f"note: {len(cut)} prompts are longer than the model reads, and are cut; the first is {first!r}…")


def _spelt(pipe, concepts: list[str]) -> None:
    """Print a note for each word of a concept that the model reads in pieces, as it reads a typo."""
    from difflib import get_close_matches

    from rece import layers, texts

    texts.check(pipe, concept=concepts)
    everyday = [text for text in texts.everyday() if " " not in text]
    for text in concepts:
        for word in text.split():
            pieces = texts.ids(pipe, word)[0]
            near = get_close_matches(word.lower(), everyday, 3) if len(pieces) > 1 else []
            if near and word.lower() not in near:
                Q, _ = layers.answers(pipe)
                a = texts.last_tokens(pipe, [word, *near, " "]).to(Q) @ Q.T
                shares = ((a[1:-1] - a[0]).norm(dim=1) / (a[0] - a[-1]).norm()).tolist()
                close = _shares(dict(zip(near, shares, strict=True)), key=lambda one: one[1])
                _tell(f"note: {word!r} is read in {len(pieces)} pieces. Near to it, in distances to ' ': {close}")


def _one(given: list[str] | None) -> str | list[str] | None:
    """The text of a list of one."""
    return given[0] if given and len(given) == 1 else given


def _kept(preserve: list[str] | None, file: Path | None) -> list[str] | None:
    """The texts of --preserve and those of --preserve-file."""
    return preserve if file is None else [*(preserve or []), *_lines(file)]


def _shares(numbers: dict[str, float], key) -> str:
    """Texts with their numbers, the first SHOWN of them by key."""
    ordered = sorted(numbers.items(), key=key)
    more = f" … {len(ordered)} in all" if len(ordered) > SHOWN else ""
    return ", ".join(f"{text!r} {number:.2f}" for text, number in ordered[:SHOWN]) + more


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without blanks at their ends and without empty lines."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"--preserve-file: {file} is not a UTF-8 text file: save it as UTF-8") from None
    if not lines:
        raise ValueError(f"--preserve-file: {file} holds no text: leave the option out")
    return lines


def _preset(name: str, settings: dict) -> dict:
    """The keywords of a preset, with the settings that were given over them. It is said which preset, and whose."""
    if name not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, not {name!r}")
    found = {key: value | {} if isinstance(value, dict) else value for key, value in PRESETS[name].settings.items()}
    for key, value in settings.items():
        found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    _tell(f"note: preset {name}: {PRESETS[name].source}")
    return found


def _settings(given: dict, pairs: list[str], own: bool = True) -> dict:
    """The keywords of rece.erase, or of a method. given: those of options, or None. pairs: NAME=VALUE of --set.

    start.lamb is the number lamb in the dict `start`. own: of rece.erase; others check their names and values.
    Raises ValueError for a name that is unknown or given twice, and for a value of the wrong kind.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or (own and name not in KEYWORDS):
            raise ValueError(f"--set takes NAME=VALUE with NAME one of {', '.join(sorted(KEYWORDS))}, not {pair!r}")
        if name in given:
            raise ValueError(f"{name} is given twice: leave one of them out")
        given[name] = _value(value)
    settings = {}
    for name, value in given.items():
        meaning, holds = KEYWORDS.get(name, ("", None))
        if own and not holds(value):
            raise ValueError(f"{name} must be {meaning}, not {value!r}")
        group, _, number = name.rpartition(".")
        (settings.setdefault(group, {}) if group else settings)[number] = value
    return settings


def _value(text: str):
    """A value as YAML reads it; also 1e-3, which YAML takes for a text."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{text!r} is no YAML value: put it in quotes") from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _measured(file: Path | None, edit) -> dict:
    """What a card says that `rece evaluate` found of this edit."""
    if file is None:
        return {}
    if not file.is_file():
        raise FileNotFoundError(f"--evaluation: there is no file {file}: make it with rece evaluate")
    from rece.study.evaluating import Evaluation

    found = Evaluation.load(file)
    if found.edit != edit.digest():
        raise ValueError(f"--evaluation: {file} measured another eraser: run rece evaluate on this one")
    return {"results": found.results, "kept": found.kept, "certificate": found.certificate}


def _export(
    kind: str, load: dict, eraser: Path, output: Path, force: bool, evaluation: Path | None = None, **about
) -> None:
    """Write the eraser as "pipeline", "lora", "kohya" (a LoRA in one file) or "weights".

    evaluation: a file of `rece evaluate`. about: keywords of `export.save_folder`.
    """
    _free(load, output, ".safetensors" if kind in ("weights", "kohya") else "", force, eraser)
    from rece.edits import Edit
    from rece.sharing import export

    edit = Edit.load(eraser)
    if edit.kind != "map":
        raise ValueError(f"ERASER: {eraser} is no map but {edit}: `rece draw --eraser` uses it as it is")
    about |= _measured(evaluation, edit)
    if kind == "weights":
        export.save_weights(edit, _load(**load), output)
        _say(f"{output}: the edited layers")
    elif kind == "kohya":
        export.save_kohya(edit, _load(**load), output, **about)
        _say(f"{output}: a LoRA for ComfyUI and A1111")
    else:
        export.save_folder(edit, _load(**load), output, kind, **about)
        _say(f"{output}: {export.FILES[kind] or 'a pipeline'} and README.md")


def _say(text, file=None) -> None:
    """Print a line. What could steer a terminal, or is not in its encoding, is written as an escape."""
    file = file or sys.stdout
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file)


def _tell(text: str) -> None:
    """Print a text as one line to stderr."""
    _say(" ".join(text.split()), sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after a line on stderr, 2 for wrong arguments, or 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with suppress(ValueError):  # of a thread that is not the main one
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"rece|__main__")
        warnings.showwarning = lambda message, *_, **__: _tell(f"warning: {message}")
        try:
            get_command(app).main(arguments, prog_name="rece")
        except SystemExit as end:
            if end.code == 130:
                print("interrupted: run the same command again", file=sys.stderr)
            return end.code
        except Exception as error:
            if "--debug" in arguments:
                raise
            known = isinstance(error, EXPECTED)
            _tell(f"error: {error}" if known else f"error: {type(error).__name__}: {error} (--debug shows where)")
            return 1


if __name__ == "__main__":
    sys.exit(main())
