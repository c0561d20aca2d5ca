"""What `python -m rece` does, one function per command; see there for the arguments."""

import argparse
import inspect
import json
import logging
import sys

import yaml
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

import rece
from rece import cluster, images, loading, prompts
from rece.eraser import Eraser
from rece.sharing import export
from rece.sharing import recover as foreign


def erase(args: argparse.Namespace) -> None:
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


def folder(args: argparse.Namespace) -> None:
    eraser = Eraser.load(args.eraser)
    about = {"licence": args.licence, "base_model": args.base_model}
    export.save_folder(eraser, _load(args), args.output, args.kind, rank=args.rank, **about)
    print(f"{args.output}: {export.FILES[args.kind] or 'a pipeline'} and README.md")


def weights(args: argparse.Namespace) -> None:
    eraser = Eraser.load(args.eraser)
    export.save_weights(eraser, _load(args), args.output)
    print(f"{args.output}: the edited layers")


def recover(args: argparse.Namespace) -> None:
    if not args.weights.is_file():
        raise FileNotFoundError(f"no weights file at {args.weights}")
    tolerance = foreign.TOLERANCE if args.tolerance is None else args.tolerance
    found = foreign.recover(_load(args), args.weights, tolerance=tolerance)
    print(f"residual {found.residual:.2g} of the edit (rounding alone {found.rounding:.1g}, tolerance {tolerance:g})")
    given = int(found.layers.given.sum())
    print(f"layers that read the prompt: {given} of {len(found.layers)} in the file")
    print(f"other weights: {len(found.unexplained)} changed")
    if not found.exact and not args.approximate:
        raise ValueError("nothing written, as the file is more than an eraser; --approximate writes the best one")
    found.eraser.save(args.output)
    print(f"{args.output}: {'the' if found.exact else 'the best'} eraser, rank {found.eraser.rank}")


def certify(args: argparse.Namespace) -> None:
    eraser = None
    if args.words[0].endswith(".safetensors"):
        eraser = Eraser.load(args.words.pop(0))
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


def draw(args: argparse.Namespace) -> None:
    read = prompts.read(args.prompts)
    for repair in read.repairs:
        print(f"note: {args.prompts}: {repair}", file=sys.stderr)
    images.checked(read.table, args.guidance)
    load = {name: getattr(args, name) for name in ("model", "revision", "eraser", "dtype", "device", "scheduler")}
    settings = {name: getattr(args, name) for name in ("steps", "guidance", "batch_size")}
    settings |= {"bf16": "auto" if args.bf16 else False, "progress": not args.quiet}
    if args.workers is None and args.scheduler_file is None:
        loading.quiet()
        print(images.draw(loading.load(**load), read.table, args.output, part=args.part or (1, 1), **settings))
        return
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("--workers and --scheduler-file need Dask: pip install distributed") from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if args.workers is None:
        with Client(scheduler_file=args.scheduler_file) as client:
            parts = 4 * max(1, len(client.scheduler_info()["workers"]))
            print(cluster.draw_parts(load, read.table, args.output, client, parts, **settings))
    else:
        with cluster.local_cluster(args.workers) as local, Client(local) as client:
            print(cluster.draw_parts(load, read.table, args.output, client, 4 * args.workers, **settings))


def push(args: argparse.Namespace) -> None:
    print(export.push_to_hub(args.folder, args.repo_id, private=not args.public, revision=args.branch))


def show(args: argparse.Namespace) -> None:
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
        eraser = Eraser.load(args.file)
        size = (eraser.map - eraser.map.new_ones(len(eraser.map)).diag()).norm().item()
        rows += [("file", "eraser"), ("width", len(eraser.map)), ("rank", eraser.rank), ("|map - I|", f"{size:.4g}")]
        rows.append(("pooled map", "none" if eraser.pooled is None else f"width {len(eraser.pooled)}"))
    else:
        kind = "LoRA" if any(name.endswith("lora_A.weight") for name in names) else "edited weights"
        rows += [("file", kind), ("tensors", len(names))]
    rows += _described(provenance)
    wide = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{wide}}  {value}" for name, value in rows))


def _load(args: argparse.Namespace) -> DiffusionPipeline:
    loading.quiet()
    return loading.load(args.model, revision=args.revision, dtype=args.dtype, device=args.device)


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
