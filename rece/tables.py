"""From one row per drawn image to the study's tables: success, transfer, union, and the prompts that were found."""

import json
from pathlib import Path

import pandas as pd

from rece import metrics

SCOPES = {"words": "zero-cost words", "text": "any prompt", "all": "any prompt or embedding"}


def success(drawn: pd.DataFrame) -> pd.DataFrame:
    """Attack success by method and attack: n, successes, rate, low, high (95 % Wilson), prompts (distinct ones asked;
    each is drawn with n / prompts seeds), top1_rate (with no threshold on the judge's probability), seconds (drawing).

    drawn: see `stages.draw_attempts`. Only attempts that were meant for the method count.
    """
    own = drawn[(drawn.source == "any") | (drawn.source == drawn.method)]
    rows = []
    for (method, attack), part in own.groupby(["method", "attack"], sort=False):
        columns = {"method": method, "attack": attack, "access": part.access.iloc[0], "kind": part.kind.iloc[0]}
        extra = {"prompts": part.asked.nunique(), "top1_rate": part.top1.mean(), "seconds": part.seconds.sum()}
        rows.append(metrics.success(part.hit.to_numpy(), **columns) | extra)
    return pd.DataFrame(rows)


def transfer(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of prompts found against one model (source) when another one draws them (method), by attack."""
    found = drawn[(drawn.kind == "text") & (drawn.source != "any") & (drawn.source != "control")]
    rows = [
        metrics.success(part.hit.to_numpy(), attack=attack, source=source, method=method)
        for (attack, source, method), part in found.groupby(["attack", "source", "method"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["attack", "source", "method", "n", "successes", "rate", "low", "high"])


def union(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of the union of attacks: a case counts if any attack of the scope brings the concept back.

    scope: "words" (prompts that cost nothing to make), "text" (all prompts), "all" (embeddings too). Only the cases
    that every attack of the scope was run on count; attacks: how many there are.
    """
    own = drawn[((drawn.source == "any") | (drawn.source == drawn.method)) & (drawn.method != "control")]
    scopes = {"words": own[own.access == "none"], "text": own[own.kind == "text"], "all": own}
    rows = []
    for scope, part in scopes.items():
        for method, mine in part.groupby("method", sort=False):
            hits = mine.pivot(index="case", columns="attack", values="hit").dropna().astype(bool)
            if len(hits):
                columns = {"method": method, "scope": scope, "attacks": hits.shape[1]}
                rows.append(metrics.success(hits.any(axis=1).to_numpy(), **columns))
    return pd.DataFrame(rows)


def pooled(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts (n, successes) of several tables added up over all columns but `by`, with new rates and intervals."""
    rows = []
    for key, part in table.groupby(by, sort=False):
        n, successes = int(part.n.sum()), int(part.successes.sum())
        low, high = metrics.wilson(successes, n)
        rate = {"n": n, "successes": successes, "rate": successes / n, "low": low, "high": high}
        rows.append(dict(zip(by, key, strict=True)) | rate)
    return pd.DataFrame(rows)


def write_prompts(path: Path, drawn: pd.DataFrame, concept: str, budgets: dict, tokenizer, threshold: float) -> int:
    """The prompts that attacks made, as JSON lines, one per prompt; returns how many.

    Keys: concept; attack, access, budget; found_against (a method, or "any" if no erased model was looked at); asked,
    the plain prompt it started from; prompt and token_ids, which are each other's under the model's tokenizer; seed of
    the image; shows, for each model that drew it, the judge's probability if its answer is the concept, else 0; and
    threshold, from which on that counted as a success.
    """
    texts, lines = drawn[(drawn.kind == "text") & (drawn.attack != "plain")], []
    for (attack, source, _), part in texts.groupby(["attack", "source", "case"], sort=False):
        first = part.iloc[0]
        shows = {row.method: round(float(row.probability) if row.top1 else 0.0, 4) for row in part.itertuples()}
        line = {"concept": concept, "attack": attack, "access": first.access, "budget": budgets[attack]}
        line |= {"found_against": source, "asked": first.asked, "prompt": first.prompt}
        line |= {"token_ids": tokenizer(first.prompt).input_ids, "seed": int(first.seed)}
        lines.append(json.dumps(line | {"shows": shows, "threshold": threshold}, ensure_ascii=False))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)
