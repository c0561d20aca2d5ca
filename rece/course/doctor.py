"""Whether a machine can run the course: one picture, from the imports to the judge's answer."""

import platform
import time
from importlib import metadata

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "jupyterlab",
    "ipywidgets",
    "matplotlib",
    "seaborn",
    "scipy",
    "pydantic",
)


def doctor() -> bool:
    """Say what is here, draw a church, and say whether the judge sees it and how long it took. Raises nothing."""
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    missing = []
    for name in NEEDED:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        print(
            f"✗ {', '.join(missing)}: not installed; run `make setup`, or `pip install -e '.[course]'` in the checkout"
        )
        return False
    start = time.perf_counter()
    try:
        from rece import course

        lab = course.open()
        loaded = time.perf_counter()
        asked = lab.ask("church", 10)
    except Exception as error:
        print(f"✗ {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return False
    drawn = time.perf_counter()
    print(f"{loaded - start:.0f} s to load the model, {drawn - loaded:.1f} s to draw ten pictures")
    right = asked.k >= 8
    print(f"{'✓ ready' if right else '✗ the pictures are wrong'}: {asked}")
    return right
