"""The course's commands: `python -m rece.course student`, `doctor` and `project`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def student(out: Annotated[Path, typer.Option(help="where they go")] = Path("notebooks/course/student")):
    """Write the lessons without their solutions."""
    from rece.course.student import write

    for path in write(out):
        print(path)


@app.command()
def doctor():
    """Draw one picture, and say whether this machine is ready for the course."""
    from rece.course.doctor import doctor

    raise typer.Exit(0 if doctor() else 1)


@app.command()
def project(
    folder: Annotated[Path, typer.Argument(help="with method.py and attack.py")] = Path("notebooks/course/mine"),
    concept: Annotated[str, typer.Option(help="an object; choose your numbers on horse")] = "church",
):
    """Measure a method and an attack of your own beside ours. The two files are run."""
    from rece import loading
    from rece.course.project import report

    loading.quiet()
    print(report(folder, concept))


if __name__ == "__main__":
    app()
