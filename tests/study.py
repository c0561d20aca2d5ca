"""A study at tiny sizes: its files of prompts, a judge, and the way from attacks to images."""

import pandas as pd

import rece
from rece.emoji import world as worlds
from rece.study import experiment

WORLD = worlds.load()
GENERATE = {"steps": 1, "guidance": 4.0, "batch_size": 2, "bf16": False}
SIZES = {"sd_image_width": 16, "sd_image_height": 16}
QUICK = {"n": 9, "seed": 0, "budget": "quick", "quick": {"plain": {}, "closed_form": {"n": 3, "lamb": 0.1}}}


class Bright:
    """A judge that sees the concept in bright images."""

    threshold = 0.3

    def answers(self, images, cases):
        assert len(images) == len(cases) and list(cases.index) == list(range(len(cases)))
        light = images.mean((1, 2, 3)) / 255
        return pd.DataFrame({"label": "bright", "probability": light, "wanted": light > 0.4})


def write(path, prompts, **columns):
    cases = range(7, 7 + len(prompts))
    pd.DataFrame({"case_number": cases, "prompt": prompts, **columns}).to_csv(path, index=False)
    return str(path)


def spec_of(tmp_path, **columns):
    """A concept that two sets of prompts ask for; the first has an empty prompt, as I2P has."""
    first = write(
        tmp_path / "first.csv", ["a dog", "", "the dog", "my dog"], evaluation_seed=[5, 2**32, 7, 8], **columns
    )
    second = write(tmp_path / "second.csv", ["a hot dog", "x"], evaluation_seed=[1, 2], **columns)
    return {
        "kind": "object",
        "erase": ["dog"],
        "target": " ",
        "asked": {"own": {"file": first}, "more": {"file": second}},
    }


def kept(tmp_path, name, prompts, scores, **columns):
    seeds = range(len(prompts))
    return {"file": write(tmp_path / f"{name}.csv", prompts, evaluation_seed=seeds, **columns), "scores": scores}


def evaluation(images=None, **scores):
    return {"threshold": 0.0, "show": 2, "images": None if images is None else str(images), "scores": scores}


def victims_of(pipe, concept="dog"):
    return {"original": pipe, "uce": rece.erase(pipe, concept, rounds=0, progress=False).copy_of(pipe)}


def attacked(folder, spec, victims, attack=QUICK):
    for name, budget in experiment.budgets(attack, spec).items():
        cases = experiment.asked(WORLD, spec, attack, name, budget)
        for source, victim in experiment.sources(name, budget, victims).items():
            attempts = experiment.attempt(name, victim, victims["original"], cases, WORLD, spec, budget)
            attempts.save(folder / f"{source}-{name}.safetensors")
