"""Certificates of the study's erasers, round by round."""

from study import WORLD

import rece
from rece.study import certified, config


def test_certificates_follow_the_rounds(pipe):
    erasers = {"uce": rece.erase(pipe, "dog", rounds=0), "rece": rece.erase(pipe, "dog", rounds=2)}
    table = certified.certificates(pipe, erasers, WORLD, {**config.params()["concept"]["dog"], "target": " "})
    assert list(zip(table.method, table["round"], strict=True)) == [("original", 0), ("uce", 0)] + [
        ("rece", n) for n in range(3)
    ]
    assert table.distance.iloc[0] < 1e-3 * table.target.iloc[0] and table.distance.iloc[1] == table.distance.iloc[2]
    assert table.other.notna().all() and table.nearest.nunique() == 1
