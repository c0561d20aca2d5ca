"""Answers to the exercises of lesson 8: files."""

import itertools
import tempfile
from pathlib import Path

from rece.course.checks import lesson8
from rece.study import config

MINE = config.root() / "notebooks/course/mine"
METHOD, ATTACK = ((MINE / name).read_text() for name in ("method.py", "attack.py"))
_folder = tempfile.TemporaryDirectory()
_number = itertools.count()


def file(source, *changes):
    """A file that holds the source with some of its text changed."""
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    path = Path(_folder.name, f"file{next(_number)}.py")
    path.write_text(source)
    return str(path)


RIGHT = {"method": (lesson8.method, str(MINE / "method.py")), "attack": (lesson8.attack, str(MINE / "attack.py"))}

WRONG = {
    "method": [
        (file(METHOD, ("def erase", "def forget")), "no function erase"),
        (str(MINE / "nothing.py"), "no file"),
        (file(METHOD, ("return rece", "rece")), "returned NoneType"),
        (
            file(METHOD, ("    return rece", "    pipe.unet.conv_in.weight.data += 1\n    return rece")),
            "pipeline is changed",
        ),
        (file(METHOD, ("lamb}", "lamb * (1 + __import__('random').random())}")), "two runs"),
        (file(METHOD, ("concept, target", "concept or 'dog', target")), "refuse it"),
        (file(METHOD, ("lamb=1e3", "lamb=1e30")), "erases nothing"),
    ],
    "attack": [
        (file(ATTACK, ("def attack", "def search")), "no function attack"),
        (file(ATTACK, ("return Attempts(", "return list("), (", seeds)", ")")), "returned list"),
        (file(ATTACK, ("in prompts], seeds", "in prompts[:5]], seeds[:5]")), "one each"),
        (file(ATTACK, ('{prompt}"', "{prompt} {__import__('random').random()}\"")), "two runs"),
        (file(ATTACK, ('f"a picture of {prompt}"', '"a tree"')), "the original draws 0 horses"),
    ],
}
