"""`python -m rece.course student` writes the student's files, `python -m rece.course doctor` looks at this machine."""

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


if __name__ == "__main__":
    app()
