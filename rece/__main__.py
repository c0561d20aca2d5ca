"""The command line: erase, apply, lora, weights, import, certify, show. See `python -m rece --help`."""

import argparse
import sys
import warnings
from pathlib import Path

# Everything else is imported after the arguments are parsed, so that --help and mistakes in them are answered at once.

EXPECTED = (ValueError, TypeError, OSError, ImportError)  # raised with a line that says what to do


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, or 1 after a line on stderr. Usage errors exit with 2, by argparse."""
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"rece|__main__")
        warnings.showwarning = lambda message, *_: print(f"warning: {_line(message)}", file=sys.stderr)
        try:
            _free(args)
            args.run(args)
        except EXPECTED as error:
            if args.debug:
                raise
            print(f"error: {_line(error)}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--debug", action="store_true", help="show the traceback of an error")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("-o", "--output", type=Path, required=True, help="where to write")
    out.add_argument("--force", action="store_true", help="overwrite what is there")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("model", metavar="MODEL", help="a pipeline folder, or a hub id together with --revision")
    model.add_argument("--revision", help="full commit hash of the hub id")
    model.add_argument("--dtype", default="float32", help="float32 (default), float16, bfloat16 or float64")
    model.add_argument("--device", help="cpu, cuda, …; default: the GPU if there is one")
    eraser = argparse.ArgumentParser(add_help=False)
    eraser.add_argument("eraser", metavar="ERASER", type=Path, help="a file that `erase` or `import` wrote")
    about = argparse.ArgumentParser(add_help=False)
    about.add_argument("--licence", help="for the card, the base model's: its name on the hub, e.g. openrail++")
    about.add_argument("--base-model", help="for the card: hub id of the base model, if MODEL is a folder")

    parser = argparse.ArgumentParser(
        prog="python -m rece",
        description="Erase concepts from text-to-image models in closed form.",
        epilog="Images: python -m rece.draw. Each command has its own --help.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, run, help, *parents):
        one = commands.add_parser(name, help=help, description=help, parents=[*parents, every])
        one.set_defaults(run=run)
        return one

    one = command("erase", _erase, "compute the eraser of one or more concepts", model, out)
    one.add_argument("concept", metavar="CONCEPT", nargs="+", help="what to erase; several are erased jointly")
    text = {"nargs": "+", "action": "extend", "metavar": "TEXT"}
    one.add_argument("--target", **text, help='what to draw instead: one for all, or one each (default " ")')
    one.add_argument("--preserve", **text, help="texts to keep")
    one.add_argument("--preserve-file", type=Path, metavar="FILE", help="texts to keep, one per line")
    one.add_argument("--rounds", help='rounds of RECE after the UCE start (default 3), 0, or "auto"')
    one.add_argument("--others", **text, help="innocent concepts that --rounds auto compares with")
    one.add_argument("--anchored", action="store_true", help="solve every round again from the original weights")
    one.add_argument("--relative", action="store_true", help="give every lambda relative to the text space")
    for name, meaning in (
        ("lamb", "lambda of each round's edit (default 0.1)"),
        ("preserve-scale", "weight of what is kept in each round (default 0.1)"),
        ("derive-lamb", "lambda of the derived embedding (default 0.1)"),
        ("uce-lamb", "lambda of the UCE start (default 0.5)"),
    ):
        one.add_argument(f"--{name}", type=float, metavar="NUMBER", help=meaning)
    one.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="any other keyword of rece.erase"
    )

    command("apply", _folder("pipeline"), "write the whole edited pipeline to a folder", model, eraser, out, about)
    one = command("lora", _folder("lora"), "write the edit as a LoRA to a folder", model, eraser, out, about)
    one.add_argument("--rank", type=int, help="cut the edit to this rank")
    command("weights", _weights, "write the edited layers alone, in UCE's layout, to a file", model, eraser, out)

    one = command("import", _import, "recover the eraser behind another project's weights", model, out)
    one.add_argument("weights", metavar="WEIGHTS", type=Path, help="its .safetensors or .pt file")
    one.add_argument("--tolerance", type=float, help="share of the edit that the eraser may lack")
    one.add_argument("--approximate", action="store_true", help="write the best eraser even if it lacks more")

    one = command("certify", _certify, "bound how close any prompt comes to a concept", model)
    one.add_argument(
        "words",
        nargs="+",
        metavar="[ERASER] CONCEPT",
        help="an eraser file (its name ends in .safetensors; without one the model as it is), then concepts; without "
        "concepts, those that the eraser erases",
    )
    one.add_argument("--target", **text, help='what they were sent to (default: as the eraser says, or else " ")')
    one.add_argument("--others", **text, help="innocent concepts to compare with")
    one.add_argument("--synonyms", **text, help="other words for the concept")

    one = command("show", _show, "print what a file of ours erases, and how it was made")
    one.add_argument("file", metavar="FILE", type=Path, help="an eraser, a LoRA or edited weights")
    return parser


def _free(args: argparse.Namespace) -> None:
    """Raises FileExistsError if the output is there already, before anything is loaded."""
    output = getattr(args, "output", None)
    if output is None:
        return
    folder = args.run.__name__ == "folder"
    if not folder and output.suffix != ".safetensors":
        raise ValueError(f"-o must be a file name that ends in .safetensors, not {str(output)!r}")
    if output.exists() and output.is_dir() != folder:
        raise FileExistsError(f"-o: {output} is a {'file' if folder else 'folder'}: choose another name")
    if output.exists() and not args.force and not (folder and not any(output.iterdir())):
        raise FileExistsError(f"-o: {output} exists: choose another name, or overwrite it with --force")


def _load(args: argparse.Namespace):
    import diffusers
    import transformers

    from rece import loading

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return loading.load(args.model, revision=args.revision, dtype=args.dtype, device=args.device)


def _erase(args: argparse.Namespace) -> None:
    import inspect

    import yaml

    import rece

    names = ("target", "others", "lamb", "preserve_scale", "derive_lamb", "uce_lamb")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings |= {name: True for name in ("anchored", "relative") if getattr(args, name)}
    if args.rounds is not None:
        settings["rounds"] = int(args.rounds) if args.rounds.lstrip("-").isdigit() else args.rounds
    preserve = list(args.preserve or [])
    if args.preserve_file is not None:
        lines = args.preserve_file.read_text(encoding="utf-8").splitlines()
        preserve += [line.strip() for line in lines if line.strip()]
    if args.preserve is not None or args.preserve_file is not None:
        settings["preserve"] = preserve
    known = set(inspect.signature(rece.erase).parameters) - {"pipe", "concept"}
    for pair in args.set:
        name, given, value = pair.partition("=")
        if not given or name not in known:
            raise ValueError(f"--set takes NAME=VALUE with NAME one of {', '.join(sorted(known))}, not {pair!r}")
        if name in settings:
            raise ValueError(f"--set {name} is given by --{name.replace('_', '-')} too: leave one of them out")
        settings[name] = yaml.safe_load(value)
    if len(settings.get("target", [])) == 1:
        settings["target"] = settings["target"][0]
    pipe = _load(args)
    eraser = rece.erase(pipe, args.concept, **settings)
    if args.revision is not None:
        eraser.provenance["revision"] = args.revision
    eraser.save(args.output)
    print(f"{args.output}: {eraser}, rank {eraser.rank}")


def _folder(kind: str):
    def folder(args: argparse.Namespace) -> None:
        from rece import export
        from rece.eraser import Eraser

        eraser = Eraser.load(args.eraser)
        about = {"licence": args.licence} | ({} if args.base_model is None else {"base_model": args.base_model})
        export.save_folder(eraser, _load(args), args.output, kind, rank=getattr(args, "rank", None), **about)
        print(f"{args.output}: {export.FILES[kind] or 'a pipeline'} and README.md")

    return folder


def _weights(args: argparse.Namespace) -> None:
    from rece import export
    from rece.eraser import Eraser

    eraser = Eraser.load(args.eraser)
    export.save_weights(eraser, _load(args), args.output)
    print(f"{args.output}: the edited layers")


def _import(args: argparse.Namespace) -> None:
    from rece import peers

    if not args.weights.is_file():
        raise FileNotFoundError(f"no weights file at {args.weights}")
    tolerance = peers.TOLERANCE if args.tolerance is None else args.tolerance
    found = peers.recover(_load(args), args.weights, tolerance=tolerance)
    print(f"residual {found.residual:.2g} of the edit (rounding alone {found.rounding:.1g}, tolerance {tolerance:g})")
    given = int(found.layers.given.sum())
    print(f"layers that read the prompt: {given} of {len(found.layers)} in the file")
    print(f"other weights: {len(found.unexplained)} changed")
    if not found.exact and not args.approximate:
        raise ValueError("nothing written, as the file is more than an eraser; --approximate writes the best one")
    found.eraser.save(args.output)
    print(f"{args.output}: {'the' if found.exact else 'the best'} eraser, rank {found.eraser.rank}")


def _certify(args: argparse.Namespace) -> None:
    import rece

    eraser = None
    if args.words[0].endswith(".safetensors"):
        eraser = rece.Eraser.load(args.words.pop(0))
    known = {} if eraser is None else eraser.provenance
    concepts = args.words or known.get("concepts")
    if not concepts:
        raise ValueError("CONCEPT must be given: the file does not say what it erases")
    targets = args.target or [" "]
    if args.target is None and "target" in known:
        sent = dict(zip(known["concepts"], known["target"], strict=True))
        targets = [sent.get(text, " ") for text in concepts]
    target = targets[0] if len(targets) == 1 else targets
    pipe = _load(args)
    made = rece.certify(pipe, eraser, concepts, target=target, others=args.others, synonyms=args.synonyms)
    columns = ["concept", "distance", "edited", "target", "other", "nearest", "synonym"]
    table = made.words[columns].dropna(axis=1, how="all")
    table.insert(2, "share", table.distance / table.target)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print("no prompt's token comes closer to the concept's last word than `distance`; `share` is of the target's")
    if args.others:
        print(f"passed: {'yes' if made.passed else 'no'} (no prompt comes as close as the nearest other already is)")


def _show(args: argparse.Namespace) -> None:
    import json

    from safetensors import SafetensorError, safe_open

    if not args.file.is_file():
        raise FileNotFoundError(f"no file at {args.file}")
    try:
        with safe_open(args.file, framework="pt") as file:
            note, names = file.metadata() or {}, set(file.keys())
        provenance = json.loads(note["rece"])
    except (SafetensorError, KeyError, ValueError):
        raise ValueError(f"{args.file} is no file of ours; `import` reads other projects' weights") from None
    rows = []
    if "map" in names:
        from rece.eraser import Eraser

        eraser = Eraser.load(args.file)
        size = (eraser.map - eraser.map.new_ones(len(eraser.map)).diag()).norm().item()
        rows += [("file", "eraser"), ("width", len(eraser.map)), ("rank", eraser.rank), ("|map - I|", f"{size:.4g}")]
        if eraser.pooled is not None:
            rows.append(("pooled width", len(eraser.pooled)))
    else:
        kind = "LoRA" if any(name.endswith("lora_A.weight") for name in names) else "edited weights"
        rows += [("file", kind), ("tensors", len(names))]
    rows += _described(provenance)
    wide = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{wide}}  {value}" for name, value in rows))


def _described(provenance: dict) -> list[tuple[str, str]]:
    rows = []
    for step, part in enumerate(provenance.get("composed", [])):
        rows += [("", ""), (f"edit {step + 1}", ""), *_described(part)]
    pairs = list(zip(provenance.get("concepts", []), provenance.get("target", []), strict=False))
    rows += [("erases" if n == 0 else "", f"{concept!r} → {target!r}") for n, (concept, target) in enumerate(pairs)]
    apart = {"composed", "versions"} | ({"concepts", "target"} if pairs else set())
    settings = {name: value for name, value in provenance.items() if name not in apart}
    rows += [(name, _text(value)) for name, value in settings.items()]
    return rows + ([("versions", _text(provenance["versions"]))] if "versions" in provenance else [])


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > 8 else ""
        return ", ".join(map(repr, value[:8])) + more or "none"
    return "none" if value is None else str(value)


def _line(message) -> str:
    return " ".join(str(message).split())


if __name__ == "__main__":
    sys.exit(main())
