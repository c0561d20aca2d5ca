"""The command line: `rece --help`, or `python -m rece --help`.

Only light modules are imported here. Each command imports torch and the rest when it runs, so that --help and wrong
arguments are answered at once.
"""

import math
import re
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperCommand
from typer.main import get_command

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)  # raised with a line that says what to do
PARTS_PER_WORKER = 4  # of a drawing, so that a fast worker takes more of them than a slow one


def _text(value) -> bool:
    return isinstance(value, str)


def _texts(value) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


# The keywords of rece.erase, with what each must be. A wrong value is refused before torch is imported.
POSITIVE = "a positive number", lambda value: _number(value) and value > 0
NOT_NEGATIVE = "a number, 0 or more", _number
TEXTS = "a list of texts, such as [cat, car]", _texts
SWITCH = "true or false", lambda value: isinstance(value, bool)
KEYWORDS: dict[str, tuple[str, Callable]] = {
    "target": ("a text or a list of texts", lambda value: _text(value) or _texts(value)),
    "preserve": TEXTS,
    "start.preserve": TEXTS,
    "each.preserve": TEXTS,
    "others": TEXTS,
    "rounds": (
        'a whole number, 0 or more, or "auto"',
        lambda value: value == "auto" or isinstance(value, int) and _number(value),
    ),
    "anchored": SWITCH,
    "relative": SWITCH,
    "pooled": SWITCH,
    "progress": SWITCH,
    "each.lamb": POSITIVE,
    "each.erase_scale": POSITIVE,
    "each.preserve_scale": NOT_NEGATIVE,
    "each.derive_lamb": POSITIVE,
    "start.lamb": POSITIVE,
    "start.erase_scale": POSITIVE,
    "start.preserve_scale": NOT_NEGATIVE,
    "each.reg": ("a text", _text),
    "start.tokens": ('"rest" or "last"', lambda value: value in ("rest", "last")),
}


class Command(TyperCommand):
    """A command whose options for lists take several values: `--preserve cat car` is `--preserve cat --preserve car`.

    The values end at the next word that starts with a dash.
    """

    def parse_args(self, ctx, args):
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread, option, first = [], None, False
        for n, word in enumerate(args):
            if word == "--":
                spread += args[n:]
                break
            if word.startswith("-"):
                option, first = word if word in lists else None, True
            elif option and not first:
                spread.append(option)
            else:
                first = False
            spread.append(word)
        return super().parse_args(ctx, spread)


app = typer.Typer(
    help="Erase concepts from text-to-image models in closed form.",
    epilog="Each command has its own --help. Exit codes: 0 done, 1 error, 2 wrong arguments, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _command(name: str, *examples: str):
    """Registers a command; its docstring is its help, and the examples stand below the options."""
    return app.command(name, cls=Command, epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in examples))


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"must be K/N with K from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])


Model = Annotated[str, typer.Argument(metavar="MODEL", help="a pipeline folder, or a hub id together with --revision")]
EraserFile = Annotated[Path, typer.Argument(metavar="ERASER", help="a file that `erase` or `import` wrote")]
Output = Annotated[Path, typer.Option("--output", "-o", help="where to write")]
Force = Annotated[bool, typer.Option("--force", help="overwrite what is there")]
Revision = Annotated[str | None, typer.Option(metavar="HASH", help="full commit hash of the hub id")]
Dtype = Annotated[Literal["float32", "float16", "bfloat16", "float64"], typer.Option(help="type of the weights")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; by default the GPU if there is one")]
Licence = Annotated[str | None, typer.Option(help="for the card: the base model's licence, e.g. openrail++")]
BaseModel = Annotated[str | None, typer.Option(help="for the card: hub id of the base model, if MODEL is a folder")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]  # read by `main`


def _option(name: str, meaning: str, metavar: str = "TEXT"):
    return typer.Option(f"--{name}", metavar=metavar, help=meaning)


def _version(asked: bool) -> None:
    if asked:
        try:
            print(metadata.version("rece"))
        except metadata.PackageNotFoundError:
            print("unknown: rece runs from a folder and is not installed")
        raise typer.Exit()


@app.callback()
def _rece(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = 0,
) -> None:
    pass


@_command(
    "erase",
    "rece erase data/emoji-diffusion dog -o dog.safetensors",
    "rece erase data/emoji-diffusion dog bus -o two.safetensors --preserve cat car --rounds 2",
)
def erase(
    model: Model,
    concept: Annotated[list[str], typer.Argument(metavar="CONCEPT", help="what to erase; several are one edit")],
    output: Output,
    target: Annotated[
        list[str] | None, _option("target", 'what to draw instead: one, or one each (default " ")')
    ] = None,
    preserve: Annotated[list[str] | None, _option("preserve", "texts to keep")] = None,
    preserve_file: Annotated[Path | None, _option("preserve-file", "texts to keep, one per line", "FILE")] = None,
    rounds: Annotated[str | None, _option("rounds", 'rounds of RECE after UCE (default 3), 0, or "auto"')] = None,
    others: Annotated[
        list[str] | None, _option("others", "innocent concepts for --rounds auto to compare with")
    ] = None,
    anchored: Annotated[bool, typer.Option("--anchored", help="start every round at the original weights")] = False,
    relative: Annotated[
        bool, typer.Option("--relative", help="multiply every lambda by the size of the model's text embeddings")
    ] = False,
    lamb: Annotated[float | None, _option("lamb", "lambda of each round (default 0.1)", "NUMBER")] = None,
    preserve_scale: Annotated[
        float | None, _option("preserve-scale", "weight of the kept texts in each round (default 0.1)", "NUMBER")
    ] = None,
    derive_lamb: Annotated[
        float | None, _option("derive-lamb", "lambda of the derived embedding (default 0.1)", "NUMBER")
    ] = None,
    start_lamb: Annotated[float | None, _option("start-lamb", "lambda of UCE (default 0.5)", "NUMBER")] = None,
    set_: Annotated[
        list[str] | None,
        _option("set", "any other keyword of rece.erase, e.g. start.tokens=last pooled=false", "NAME=VALUE"),
    ] = None,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Compute the eraser of one or more concepts."""
    _free(output, False, force, model)
    if preserve_file is not None:
        preserve = [*(preserve or []), *_lines(preserve_file)]
    keywords = {"target": target, "preserve": preserve, "others": others, "start.lamb": start_lamb}
    keywords |= {"each.lamb": lamb, "each.preserve_scale": preserve_scale, "each.derive_lamb": derive_lamb}
    keywords |= {"rounds": rounds if rounds is None else _value(rounds)}
    keywords |= {"anchored": anchored or None, "relative": relative or None}
    settings = _keywords(keywords, set_ or [])
    _known(model, revision)
    import rece

    eraser = rece.erase(_load(model, revision, dtype, device), concept, **settings)
    if revision is not None:
        eraser.provenance["revision"] = revision
    eraser.save(output)
    _say(f"{output}: {eraser}, rank {eraser.rank}")


@_command("apply", "rece apply data/emoji-diffusion dog.safetensors -o without-dog")
def apply(
    model: Model,
    eraser: EraserFile,
    output: Output,
    licence: Licence = None,
    base_model: BaseModel = None,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write the whole edited pipeline to a folder."""
    _free(output, True, force, model, eraser)
    _export("pipeline", output, eraser, (model, revision, dtype, device), licence=licence, base_model=base_model)


@_command("lora", "rece lora data/emoji-diffusion dog.safetensors -o dog-lora")
def lora(
    model: Model,
    eraser: EraserFile,
    output: Output,
    rank: Annotated[int | None, _option("rank", "cut the edit to this rank", "NUMBER")] = None,
    licence: Licence = None,
    base_model: BaseModel = None,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write the edit as a LoRA to a folder."""
    _free(output, True, force, model, eraser)
    about = {"rank": rank, "licence": licence, "base_model": base_model}
    _export("lora", output, eraser, (model, revision, dtype, device), **about)


@_command("weights", "rece weights data/emoji-diffusion dog.safetensors -o dog-weights.safetensors")
def weights(
    model: Model,
    eraser: EraserFile,
    output: Output,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write the edited layers alone, in UCE's layout, to a file."""
    _free(output, False, force, model, eraser)
    _known(model, revision)
    from rece.eraser import Eraser
    from rece.sharing import export

    edit = Eraser.load(eraser)
    export.save_weights(edit, _load(model, revision, dtype, device), output)
    _say(f"{output}: the edited layers")


@_command("import", "rece import data/emoji-diffusion uce.safetensors -o dog.safetensors")
def recover(
    model: Model,
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="the other project's .safetensors or .pt file")],
    output: Output,
    tolerance: Annotated[
        float | None, _option("tolerance", "share of the edit that the eraser may lack (default 0.05)", "NUMBER")
    ] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="write the eraser even if it lacks more")] = False,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Recover the eraser behind another project's weights."""
    _free(output, False, force, model, weights)
    if not weights.is_file():
        raise FileNotFoundError(f"no weights file at {weights}")
    _known(model, revision)
    from rece.sharing import recover as sharing

    tolerance = sharing.TOLERANCE if tolerance is None else tolerance
    found = sharing.recover(_load(model, revision, dtype, device), weights, tolerance=tolerance)
    print(f"residual {found.residual:.2g} of the edit (rounding alone {found.rounding:.1g}, tolerance {tolerance:g})")
    given = int(found.layers.given.sum())
    print(f"layers that read the prompt: {given} of {len(found.layers)} in the file")
    print(f"other weights: {len(found.unexplained)} changed")
    if not found.exact and not approximate:
        raise ValueError("nothing written, as the file is more than an eraser; --approximate writes the best one")
    found.eraser.save(output)
    _say(f"{output}: {'the' if found.exact else 'the best'} eraser, rank {found.eraser.rank}")


@_command("certify", "rece certify stable-diffusion-v1-4 nudity.safetensors --others car tree --synonyms naked")
def certify(
    model: Model,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[ERASER] CONCEPT",
            help="an eraser file, then concepts. Without the file the model is certified as it is. Without concepts, "
            "those that the eraser erases are taken",
        ),
    ],
    target: Annotated[
        list[str] | None, _option("target", 'what was drawn instead (default: as the eraser says, or else " ")')
    ] = None,
    others: Annotated[list[str] | None, _option("others", "innocent concepts to compare with")] = None,
    synonyms: Annotated[list[str] | None, _option("synonyms", "other words for the concept")] = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Bound how close any prompt comes to a concept. A bound that is not passed is a result: the exit code is 0."""
    _known(model, revision)
    import rece

    words = list(words)
    eraser = None
    if words[0].endswith(".safetensors") or Path(words[0]).is_file():
        eraser = rece.Eraser.load(words.pop(0))
    known = {} if eraser is None else eraser.provenance
    concepts = words or known.get("concepts")
    if not concepts:
        raise ValueError("CONCEPT must be given: the file does not say what it erases")
    targets = target or [" "]
    if target is None and "target" in known:
        sent = dict(zip(known["concepts"], known["target"], strict=True))
        targets = [sent.get(text, " ") for text in concepts]
    pipe = _load(model, revision, dtype, device)
    target = targets[0] if len(targets) == 1 else targets
    made = rece.certify(pipe, eraser, concepts, target=target, others=others, synonyms=synonyms)
    columns = ["concept", "distance", "edited", "target", "other", "nearest", "synonym"]
    table = made.words[columns].dropna(axis=1, how="all")
    table.insert(2, "share", table.distance / table.target)
    for row in table.to_string(index=False, float_format="{:.4g}".format).splitlines():
        _say(row)
    print("distance: no prompt's token comes closer than this to the last word of the concept.")
    print("share: the distance, divided by the distance of the target.")
    if others and made.passed:
        print("passed: yes. No prompt comes as close to a concept as the nearest of --others is.")
    elif others:
        print("passed: no. It is not proven that every prompt stays further away than the nearest of --others.")


@_command(
    "draw",
    'rece draw data/emoji-diffusion "a dog in noto style" -o dog.png --seed 3 --eraser dog.safetensors',
    "rece draw data/emoji-diffusion prompts.csv -o drawings",
)
def draw(
    model: Model,
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPT|FILE", help="a prompt, or a csv with the columns prompt and seed")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="a .png of one prompt, or a folder for a csv")],
    seed: Annotated[int | None, _option("seed", "of the noise, for one prompt (default 0)", "NUMBER")] = None,
    eraser: Annotated[Path | None, _option("eraser", "apply this eraser first", "FILE")] = None,
    scheduler: Annotated[
        str | None, _option("scheduler", "such as LMSDiscreteScheduler; by default the model's own", "CLASS")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="of the scheduler")] = 50,
    guidance: Annotated[float, typer.Option(help="where the csv has none")] = 7.5,
    batch_size: Annotated[int, typer.Option(min=1, help="even; halved when memory runs out")] = 8,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="compute in bfloat16 where the device does so by itself")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
    part: Annotated[
        tuple | None, typer.Option(parser=_part, metavar="K/N", help="draw only the K-th of N parts, K from 1")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes on this machine, one GPU each (Dask)")] = None,
    scheduler_file: Annotated[Path | None, _option("scheduler-file", "of a running Dask scheduler", "FILE")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the .png that is there")] = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Draw one picture of a prompt, or a folder of pictures from a csv file.

    The folder gets <case>.png for each line of the file. The same command again draws only what is missing.
    """
    shared = {"--part": part, "--workers": workers, "--scheduler-file": scheduler_file}
    given = [name for name, value in shared.items() if value is not None]
    table = prompts.endswith(".csv") or Path(prompts).is_file()
    if len(given) > (1 if table else 0):
        reason = "only one of them can be given" if table else "only a csv file can be shared: leave it out"
        raise typer.BadParameter(f"{' and '.join(given)}: {reason}")
    if table and seed is not None:
        raise typer.BadParameter("--seed belongs to one prompt: the seeds of a csv file are in the file")
    load = {"model": model, "revision": revision, "eraser": eraser, "dtype": dtype, "device": device}
    load["scheduler"] = scheduler
    settings = {"steps": steps, "guidance": guidance, "bf16": "auto" if bf16 else False, "progress": not quiet}
    if not table:
        _free(output, False, force, model, eraser, suffix=".png")
        _known(model, revision)
        _picture(load, prompts, 0 if seed is None else seed, output, settings)
        return
    if output.suffix == ".png":
        raise ValueError("-o must be a folder, as a csv file gives many pictures")
    _known(model, revision)
    from rece import cluster, images, loading
    from rece.sharing.prompts import read

    read = read(prompts)
    for repair in read.repairs:
        _say(f"note: {prompts}: {repair}", sys.stderr)
    settings |= {"batch_size": batch_size}
    if workers is None and scheduler_file is None:
        loading.quiet()
        images.draw(loading.load(**load), read.table, output, part=part or (1, 1), **settings)
        _say(output)
        return
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("--workers and --scheduler-file need Dask: pip install distributed") from None
    import logging

    logging.getLogger("distributed").setLevel(logging.WARNING)
    if scheduler_file is not None:
        with Client(scheduler_file=str(scheduler_file)) as client:
            parts = PARTS_PER_WORKER * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            cluster.draw_parts(load, read.table, output, client, parts, **settings)
    else:
        with cluster.local_cluster(workers) as local, Client(local) as client:
            cluster.draw_parts(load, read.table, output, client, PARTS_PER_WORKER * workers, **settings)
    _say(output)


@_command("push", "rece push dog-lora me/without-dog")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="with its README.md")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name; made if it does not exist")],
    public: Annotated[bool, typer.Option("--public", help="everyone may see it")] = False,
    branch: Annotated[str | None, _option("branch", "made if it does not exist; by default main", "NAME")] = None,
    debug: Debug = False,
) -> None:
    """Upload a folder that `apply` or `lora` wrote to the hub, as a private repository."""
    from rece.sharing import export

    _say(export.push_to_hub(folder, repo_id, private=not public, revision=branch))


@_command("show", "rece show dog.safetensors", "rece show dog-lora")
def show(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="an eraser, a LoRA, edited weights, or a folder of `apply` or `lora`"),
    ],
    debug: Debug = False,
) -> None:
    """Print what a file of ours erases, and how it was made."""
    from rece.sharing import show as reader

    rows = reader.rows(file)
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        _say(f"{name:<{wide}}  {value}")


def _free(output: Path, folder: bool, force: bool, *inputs: str | Path | None, suffix: str = ".safetensors") -> None:
    """Raises ValueError or FileExistsError, before anything is loaded, if the output may not be written.

    folder: whether the output is a folder. inputs: what the command reads, which it must not replace.
    """
    if not folder and output.suffix != suffix:
        raise ValueError(f"-o must be a file name that ends in {suffix}, not {str(output)!r}")
    if output.exists() and output.is_dir() != folder:
        raise FileExistsError(f"-o: {output} is a {'file' if folder else 'folder'}: choose another name")
    for name in filter(None, inputs):
        source, made = Path(name).resolve(), output.resolve()
        if source.exists() and (made == source or source in made.parents):
            raise ValueError(f"-o: {output} is or lies in {name}, which the command reads: choose another place")
    if output.exists() and not force and not (folder and not any(output.iterdir())):
        raise FileExistsError(f"-o: {output} exists: choose another name, or overwrite it with --force")


def _known(model: str, revision: str | None) -> None:
    """Raises FileNotFoundError, before torch is imported, if the model can only be a folder, and there is none."""
    if revision is None and not Path(model).is_dir():
        hub = "; for a model of the hub, give its full commit hash with --revision" if model.count("/") == 1 else ""
        raise FileNotFoundError(f"MODEL: there is no folder {model!r}{hub}")


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without blanks at their ends and without empty lines."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"--preserve-file: {file} is not a UTF-8 text file: save it as UTF-8") from None
    if not lines:
        raise ValueError(f"--preserve-file: {file} holds no text: leave the option out")
    return lines


def _keywords(options: dict, pairs: list[str]) -> dict:
    """The keywords of rece.erase that were given: options by keyword (None: not given), and NAME=VALUE of --set.

    A number of the start or of each round has a name like start.lamb.

    Raises ValueError for a name that is unknown or given twice, and for a value of the wrong kind.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    if len(settings.get("target", [])) == 1:
        settings["target"] = settings["target"][0]
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or name not in KEYWORDS:
            raise ValueError(f"--set takes NAME=VALUE with NAME one of {', '.join(sorted(KEYWORDS))}, not {pair!r}")
        if name in settings:
            raise ValueError(f"{name} is given twice: leave one of them out")
        settings[name] = _value(value)
    for name, value in settings.items():
        meaning, holds = KEYWORDS[name]
        if not holds(value):
            raise ValueError(f"{name} must be {meaning}, not {value!r}")
    nested = {name: value for name, value in settings.items() if "." not in name}
    for name, value in settings.items():
        if "." in name:
            group, number = name.split(".")
            nested.setdefault(group, {})[number] = value
    return nested


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


def _load(model: str, revision: str | None, dtype: str, device: str | None):
    from rece import loading

    loading.quiet()
    if Path(model, "rece.json").is_file():
        warnings.warn(f"{model} holds a model that was edited before; `rece show {model}` says how", stacklevel=1)
    return loading.load(model, revision=revision, dtype=dtype, device=device)


def _export(kind: str, output: Path, eraser: Path, model: tuple, **about) -> None:
    """Write the eraser as a folder with a card. model: the arguments of `_load`. about: of `export.save_folder`."""
    _known(*model[:2])
    from rece.eraser import Eraser
    from rece.sharing import export

    edit = Eraser.load(eraser)
    export.save_folder(edit, _load(*model), output, kind, **about)
    _say(f"{output}: {export.FILES[kind] or 'a pipeline'} and README.md")


def _picture(load: dict, prompt: str, seed: int, output: Path, settings: dict) -> None:
    """Draw one prompt into a .png file."""
    from PIL import Image

    from rece import files, images, loading

    loading.quiet()
    (image,) = images.generate(loading.load(**load), [prompt], [seed], batch_size=1, **settings)
    with files.replacing(output) as file:
        Image.fromarray(image).save(file, "png")
    _say(output)


def _say(text, file=None) -> None:
    """Print a line. What could steer a terminal, or is not in its encoding, is written as an escape."""
    file = file or sys.stdout
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file)


def _line(message) -> str:
    return " ".join(str(message).split())


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after a line on stderr, 2 for wrong arguments, or 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"rece|__main__")
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {_line(message)}", sys.stderr)
        try:
            get_command(app).main(arguments, prog_name="rece")
        except SystemExit as end:
            if end.code == 130:
                print("interrupted: run the same command again", file=sys.stderr)
            return end.code
        except Exception as error:
            if "--debug" in arguments:
                raise
            kind = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
            more = "" if isinstance(error, EXPECTED) else " (--debug shows where)"
            _say(f"error: {kind}{_line(error)}{more}", sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
