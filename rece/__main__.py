"""The command line: `python -m rece --help`. What the commands do is in `rece.commands`."""

import argparse
import re
import sys
import warnings
from pathlib import Path

# Nothing else is imported before the arguments are parsed, so that --help and mistakes in them are answered at once.

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)  # raised with a line that says what to do


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 1 after a line on stderr, or 130 if it is interrupted. Usage errors exit with 2."""
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"rece|__main__")
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {_line(message)}", file=sys.stderr)
        try:
            if args.writes is not None:
                _free(args.output, args.writes, args.force)
            from rece import commands

            getattr(commands, args.run)(args)
        except KeyboardInterrupt:
            print("interrupted: run the same command again", file=sys.stderr)
            return 130
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
    model.add_argument("--revision", metavar="HASH", help="full commit hash of the hub id")
    model.add_argument("--dtype", default="float32", help="float32 (default), float16, bfloat16 or float64")
    model.add_argument("--device", help="cpu, cuda, cuda:1, …; default: the GPU if there is one")
    eraser = argparse.ArgumentParser(add_help=False)
    eraser.add_argument("eraser", metavar="ERASER", type=Path, help="a file that `erase` or `import` wrote")
    about = argparse.ArgumentParser(add_help=False)
    about.add_argument("--licence", help="for the card, the base model's: its name on the hub, e.g. openrail++")
    about.add_argument("--base-model", help="for the card: hub id of the base model, if MODEL is a folder")

    parser = argparse.ArgumentParser(
        prog="python -m rece",
        description="Erase concepts from text-to-image models in closed form.",
        epilog="Each command has its own --help. Exit codes: 0 done, 1 error, 2 wrong arguments, 130 interrupted.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, help, *parents, run=None, writes=None, **defaults):
        one = commands.add_parser(name, help=help, description=help, parents=[*parents, every])
        one.set_defaults(run=run or name, writes=writes, **defaults)
        return one

    one = command("erase", "compute the eraser of one or more concepts", model, out, writes="file")
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
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any other keyword of rece.erase, e.g. uce_tokens=last, pooled=false",
    )

    files = {"run": "folder", "writes": "folder"}
    edit = (model, eraser, out, about)
    command("apply", "write the whole edited pipeline to a folder", *edit, **files, kind="pipeline", rank=None)
    one = command("lora", "write the edit as a LoRA to a folder", *edit, **files, kind="lora")
    one.add_argument("--rank", type=int, help="cut the edit to this rank")
    help = "write the edited layers alone, in UCE's layout, to a file"
    command("weights", help, model, eraser, out, writes="file")

    help = "recover the eraser behind another project's weights"
    one = command("import", help, model, out, run="recover", writes="file")
    one.add_argument("weights", metavar="WEIGHTS", type=Path, help="its .safetensors or .pt file")
    one.add_argument("--tolerance", type=float, help="share of the edit that the eraser may lack")
    one.add_argument("--approximate", action="store_true", help="write the best eraser even if it lacks more")

    one = command("certify", "bound how close any prompt comes to a concept", model)
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

    help = "draw an image for every line of a prompt file into a folder; the same command again draws only what is "
    help += "missing"
    one = command("draw", help, model)
    one.add_argument("prompts", metavar="PROMPTS", type=Path, help="csv with prompts and seeds; see rece.prompts")
    one.add_argument("-o", "--output", type=Path, required=True, help="folder of the images; one for each run")
    one.add_argument("--eraser", type=Path, metavar="FILE", help="apply this eraser first")
    one.add_argument("--scheduler", metavar="CLASS", help="such as LMSDiscreteScheduler; default: the model's own")
    one.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    one.add_argument("--guidance", type=float, default=7.5, help="where the csv has none; default: %(default)s")
    one.add_argument("--batch-size", type=int, default=8, help="even; halved when out of memory; default: %(default)s")
    one.add_argument("--bf16", action="store_true", help="compute in bfloat16 where the device does so by itself")
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    several = one.add_mutually_exclusive_group()
    several.add_argument("--part", type=_part, metavar="K/N", help="only the K-th of N parts, K from 1 (job arrays)")
    several.add_argument("--workers", type=int, metavar="N", help="that many processes here, a GPU each (Dask)")
    several.add_argument("--scheduler-file", metavar="FILE", help="of a running Dask scheduler (dask scheduler)")

    one = command("push", "upload a folder that `apply` or `lora` wrote to the hub, as a private repository")
    one.add_argument("folder", metavar="FOLDER", type=Path, help="with its README.md")
    one.add_argument("repo_id", metavar="REPO_ID", help="owner/name; made if it does not exist")
    one.add_argument("--public", action="store_true", help="everyone may see it")
    one.add_argument("--branch", metavar="NAME", help="made if it does not exist; default: main")

    one = command("show", "print what a file of ours erases, and how it was made")
    one.add_argument("file", metavar="FILE", type=Path, help="an eraser, a LoRA or edited weights")
    return parser


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])


def _free(output: Path, writes: str, force: bool) -> None:
    """Raises FileExistsError if the output is there already, before anything is loaded. writes: "file" or "folder"."""
    folder = writes == "folder"
    if not folder and output.suffix != ".safetensors":
        raise ValueError(f"-o must be a file name that ends in .safetensors, not {str(output)!r}")
    if output.exists() and output.is_dir() != folder:
        raise FileExistsError(f"-o: {output} is a {'file' if folder else 'folder'}: choose another name")
    if output.exists() and not force and not (folder and not any(output.iterdir())):
        raise FileExistsError(f"-o: {output} exists: choose another name, or overwrite it with --force")


def _line(message) -> str:
    return " ".join(str(message).split())


if __name__ == "__main__":
    sys.exit(main())
