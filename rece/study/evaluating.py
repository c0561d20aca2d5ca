"""One edit of one concept of any model, evaluated: attacks at small budgets, what is kept, and the certificate.

`rece evaluate MODEL FILE CONCEPT` prints it, and keeps it in a file that `rece lora` and `apply` write into the model
card.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from diffusers import DiffusionPipeline

from rece import attacks, files, layers, texts
from rece.certificate import Certificate, certify, norm
from rece.edits import Edit
from rece.eraser import Eraser, targets
from rece.images import generate
from rece.study import plan, statistics

TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}")
SEEDS = range(4)
NEIGHBOURS, FURTHER = 5, 15  # others that are nearest, and how many more of those that the embedded judge knows
# What is tried, in order, each with a budget for minutes and not for days. "synonym" is run where synonyms are given.
QUICK = {
    "plain": {},
    "synonym": {},
    "closed_form": {"lamb": 1e-5},
    "unlearndiff": {"tokens": 3, "updates": 20, "times": 4, "score_times": 1},
    "inversion": {"updates": 60, "images_per": 4},
}


@dataclass
class Evaluation:
    """What was measured of an edit.

    edit: its digest. results: a row per attack, with attack, budget, judge, threshold, n, successes, rate, low, high
    (95 % Wilson). kept: a row per other text, with text, near (whether it is among the NEIGHBOURS nearest), n, and the
    rates before and after. certificate: of a map, else None.
    """

    concept: str
    edit: str
    results: pd.DataFrame
    kept: pd.DataFrame
    certificate: Certificate | None

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        table = None if self.certificate is None else self.certificate.table
        found = {"concept": self.concept, "edit": self.edit} | {
            name: None if part is None else json.loads(part.to_json(orient="records"))
            for name, part in {"results": self.results, "kept": self.kept, "certificate": table}.items()
        }
        with files.replacing(path) as file:
            file.write(f"{json.dumps(found, indent=1)}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError if it is none."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            certificate = found["certificate"] and Certificate(pd.DataFrame(found["certificate"]))
            tables = pd.DataFrame(found["results"]), pd.DataFrame(found["kept"])
            return cls(found["concept"], found["edit"], *tables, certificate)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no file of rece evaluate ({type(error).__name__}: {error})") from None


def evaluate(
    pipe: DiffusionPipeline,
    edit: Edit,
    concept: str,
    judge,
    *,
    synonyms: Sequence[str] = (),
    others: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    budgets: dict[str, dict] = QUICK,
    threshold: float = 0.5,
    **drawing,
) -> Evaluation:
    """Measure what an edit leaves of a concept, and of other texts. The pipeline is left as it is.

    concept: a text. judge: see `rece.judges`; one with labels must know the concept and the others by name.
    synonyms: other words for it. others: texts to keep; by default, of the objects that the embedded judge knows, the
    nearest NEIGHBOURS and FURTHER more, and none of other judges. templates, seeds: a picture is asked for by every
    template, {} being the text, with every seed; by default the embedded model's own captions, or TEMPLATES.
    budgets: by attack; those that do not apply to the edit are left out. threshold: the least probability of a
    success. drawing: steps, guidance, batch_size, bf16 of `generate`; searches take them too.
    Raises ValueError naming the parameter, before anything is drawn.
    """
    (concept,) = texts.concepts_of(concept)
    templates = _templates(judge, concept) if templates is None else templates
    if not templates or not all(template.count("{}") == 1 for template in templates):
        raise ValueError('templates must be texts, each with one {}, such as "a photo of a {}"')
    if not len(seeds):
        raise ValueError("seeds must be one number or more")
    unknown = [name for name in budgets if name not in attacks.names()]
    if unknown:
        raise ValueError(f"attacks: there is no {unknown[0]!r}; there are {', '.join(attacks.names())}")
    known = [name for name in getattr(judge, "objects", []) if name != concept]
    named = known if others is None else texts.listed(list(others), "others")
    texts.check(pipe, concept=[concept], synonyms=list(synonyms), others=named)
    _question(judge, [concept, *named])
    ordered = _by_distance(pipe, concept, named)
    near, further = ordered[:NEIGHBOURS], ordered[NEIGHBOURS:]
    if others is None:
        others = near + further[:: max(1, len(further) // FURTHER)][:FURTHER]
    victim = edit.copy_of(pipe)
    cases, about = _cases(judge, concept, templates, seeds), [{"name": concept, "words": [concept, *synonyms]}]
    asked, rows = (list(cases.prompt), list(cases.seed)), []
    budgets = {
        name: budget
        for name, budget in budgets.items()
        if (synonyms or name != "synonym") and not attacks.applies(name, victim if attacks.needs(name) else pipe)
    }
    if not budgets:
        raise ValueError("attacks: none of them can be run on this edit (synonym needs synonyms): choose others")
    for name, budget in budgets.items():
        own = budget | {key: value for key, value in drawing.items() if key in attacks.budget_items(name)}
        attempts = attacks.run(name, victim, *asked, original=pipe, concept=about, **own)
        images = generate(victim, attempts.prompts, attempts.seeds, embeds=attempts.embeds, progress=False, **drawing)
        hits = plan.hits(judge, judge.answers(images, cases), threshold)
        note = {
            "attack": name,
            "budget": "quick" if budget == QUICK.get(name) else "own",
            "judge": judge.describe()["judge"],
        }
        rows.append(statistics.success_rate(hits, **note, threshold=max(threshold, judge.threshold)))
    kept = _kept(pipe, victim, judge, others, templates, seeds, threshold, drawing)
    made, target = None, targets(edit.provenance).get(concept, " ")
    if isinstance(edit, Eraser):
        made = certify(pipe, edit, concept, target=target, others=others or None)
    kept.insert(1, "near", kept.text.isin(near))
    return Evaluation(concept, edit.digest(), pd.DataFrame(rows), kept, made)


def _templates(judge, concept: str) -> Sequence[str]:
    styles = getattr(judge, "styles", [])
    if concept in styles:
        return [f"a {name} in {{}} style" for name in judge.objects[:: max(1, len(judge.objects) // len(TEMPLATES))]]
    return [f"a {{}} in {style} style" for style in styles] or TEMPLATES


def _question(judge, names: list[str]) -> None:
    """Raises ValueError if the judge has labels, and not all of these names."""
    if hasattr(judge, "objects"):
        known = [*judge.objects, *judge.styles]
        for name in (name for name in names if name not in known):
            near = ", ".join(get_close_matches(name, known, 3)) or f"{', '.join(known[:5])} and {len(known) - 5} more"
            raise ValueError(f"concept, others: the judge knows no {name!r}, but {near}")
    elif hasattr(judge, "classes") and callable(judge.classes):
        for name in names:
            judge.classes(name)


def _cases(judge, text: str, templates: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    rows = [{"prompt": template.format(text), "seed": int(seed)} for template in templates for seed in seeds]
    style = text in getattr(judge, "styles", [])
    return pd.DataFrame(rows).assign(label=text, wanted=[[text]] * len(rows), judged="style" if style else "object")


def _kept(pipe, victim, judge, others, templates, seeds, threshold: float, drawing: dict) -> pd.DataFrame:
    """How often each text is still drawn, with one picture per template."""
    found = pd.DataFrame({"text": list(others), "n": len(templates)})
    if not len(found):
        return found
    cases = pd.concat([_cases(judge, text, templates, list(seeds)[:1]) for text in others], ignore_index=True)
    for name, model in {"before": pipe, "after": victim}.items():
        images = generate(model, list(cases.prompt), list(cases.seed), progress=False, **drawing)
        hits = plan.hits(judge, judge.answers(images, cases), threshold)
        found[name] = hits.reshape(-1, len(templates)).mean(1)
    return found


def _by_distance(pipe, concept: str, others: list[str]) -> list[str]:
    """The others, first those whose last word tokens the layers answer nearest to the concept's."""
    if not others:
        return []
    G = layers.gram(pipe)
    tokens = texts.last_tokens(pipe, [concept, *others]).to(G)
    return [others[n] for n in norm(tokens[1:] - tokens[0], G).argsort().tolist()]
