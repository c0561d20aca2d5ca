"""The sweep over numbers measures every eraser of its grid."""

import tiny
from study import WORLD

from rece.judges.embedded import Judge
from rece.study import config, frontier

GENERATE = {"steps": 1, "guidance": 1.0, "batch_size": 2}


def test_frontier_measures_every_eraser_of_the_grid():
    pipe, judge = tiny.sd(), Judge(WORLD.objects, WORLD.styles).eval()
    erase = {"uce": {"rounds": 0}, "rece": {"rounds": 1}, "anchored": {"rounds": 1}}
    grid = {
        "uce": [{"start.lamb": [0.5, 5.0]}],
        "rece": [{"each.lamb": [0.1], "rounds": [1, "auto"]}],
        "anchored": [{"rounds": [2]}, {"rounds": [1]}],
    }
    sweep = {
        "n": 2,
        "preserve_n": 2,
        "seed": 0,
        "threshold": 0.5,
        "grid": grid,
        "attacks": {"plain": {}, "closed_form": {}},
    }
    table = frontier.frontier(pipe, judge, WORLD, config.params()["concept"]["dog"], erase, sweep, GENERATE)
    assert list(table.method) == ["uce", "uce", "rece", "rece", "anchored", "anchored"]
    assert list(table.lamb[:2]) == [0.5, 5.0] and list(table["auto"]) == [False, False, False, True, False, False]
    assert table.certified.iloc[-2] > table.certified.iloc[0] > 0 and (table.text_attack == "plain").all()
