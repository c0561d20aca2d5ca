"""Run a stage's notebook by papermill, with the parameters that the notebook declares and no others.

`python -m rece.study.run -f params.yaml notebooks/erase.ipynb results/notebooks/erase.ipynb -p out results/erase`
"""

import argparse
import sys
from pathlib import Path

import papermill
import yaml

from rece.study import config


def run(notebook: str | Path, output: str | Path, file: str | Path, given: dict) -> None:
    """Execute a notebook in its own folder and write the executed copy, a page to read.

    file: of parameters, checked first. given: further parameters, which go before those of the file. The copy shows
    the parameters it was run with and leaves out the notebook's own defaults. Missing folders are made.
    Raises ValueError naming the parameter that the notebook does not have, and what the notebook raises.
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{notebook} has no parameter {unknown[0]!r}: it has {', '.join(known)}")
    parameters = {name: value for name, value in config.params(Path(file)).items() if name in known} | given
    asked = [given["name"]] if "name" in given else parameters.get("concepts", [])
    if "concept" in parameters:
        config.known(asked, parameters["concept"], "name", "section in concept")
        parameters["concept"] = {name: parameters["concept"][name] for name in asked}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    quiet = {"progress_bar": False, "log_output": False}
    papermill.execute_notebook(str(notebook), str(output), parameters, cwd=str(Path(notebook).parent), **quiet)
    page = papermill.iorw.load_notebook_node(str(output))
    page.cells = [cell for cell in page.cells if "parameters" not in cell.metadata.get("tags", [])]
    papermill.iorw.write_ipynb(page, str(output))


def parser() -> argparse.ArgumentParser:
    """The arguments, named as papermill's."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("notebook")
    made.add_argument("output")
    made.add_argument("-f", "--parameters_file", required=True, help="of parameters, such as params.yaml")
    made.add_argument("-p", "--parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends with 1 after a line on stderr if a parameter is wrong."""
    args = parser().parse_args(arguments)
    given = {name: yaml.load(value, config.Loader) for name, value in args.parameters}
    try:
        run(args.notebook, args.output, args.parameters_file, given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
