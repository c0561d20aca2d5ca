"""From one row per drawn image to the study's tables: success, transfer, union, and success against certificates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, spearmanr

RATE = ["n", "successes", "rate", "low", "high"]
SUCCESS = ["method", "attack", "access", "kind", *RATE, "prompts", "top1_rate"]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (low, high) of a rate of `successes` in `n` independent trials.

    Raises ValueError if n < 1 or successes is not a whole number in 0..n.
    """
    if int(n) != n or n < 1:
        raise ValueError(f"n must be a whole number, 1 or more, not {n}: a rate of nothing has no interval")
    if int(successes) != successes or not 0 <= successes <= n:
        raise ValueError(f"successes must be a whole number from 0 to n = {n}, not {successes}")
    low, high = binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    rate = successes / n  # rounding may put an end of the interval beyond 0, 1 or the rate by one bit
    return max(0.0, min(float(low), rate)), min(1.0, max(float(high), rate))


def success_rate(hits: Sequence[bool], **columns) -> dict:
    """A row of a success table: the given columns, then n, successes, rate, low, high (95 % Wilson).

    Raises ValueError if hits is empty or not a list of truth values.
    """
    hits = np.asarray(hits)
    if hits.ndim != 1 or not len(hits) or hits.dtype != bool:
        raise ValueError(f"hits must be one truth value per attempt, not {hits.dtype} of shape {hits.shape}")
    n, successes = len(hits), int(hits.sum())
    low, high = wilson(successes, n)
    return {**columns, "n": n, "successes": successes, "rate": successes / n, "low": low, "high": high}


def rank_correlation(x: Sequence[float], y: Sequence[float], repeats: int = 2000, seed: int = 0) -> dict:
    """Spearman's rank correlation of two columns and its 95 % bootstrap interval: a dict of rho, low, high and n.

    The interval is the percentile interval over `repeats` resamples of the points, drawn with a fixed seed. Resamples
    in which a column has one value only are left out, since they have no correlation.
    Raises ValueError if there are fewer than four points, if a value is not finite, or if a column has one value only.
    Source: scipy.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y) or len(x) < 4 or not np.isfinite([x, y]).all() or min(np.ptp(x), np.ptp(y)) == 0:
        raise ValueError("x and y must be finite, of one length of 4 or more, and vary")

    def rho(x, y):
        return spearmanr(x, y).statistic if np.ptp(x) > 0 and np.ptp(y) > 0 else np.nan

    drawn = bootstrap(
        (x, y), rho, paired=True, vectorized=False, n_resamples=repeats, method="percentile", rng=seed
    ).bootstrap_distribution
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"rho": float(rho(x, y)), "low": float(low), "high": float(high), "n": len(x)}


def success(drawn: pd.DataFrame) -> pd.DataFrame:
    """Attack success by method and attack: n, successes, rate, low, high (95 % Wilson), prompts (distinct ones asked;
    each is drawn with n / prompts seeds), top1_rate (with no threshold on the judge's probability).

    drawn: see `experiment.draw_attempts`. Only attempts that were meant for the method count.
    """
    own = drawn[(drawn.source == "any") | (drawn.source == drawn.method)]
    rows = []
    for (method, attack), part in own.groupby(["method", "attack"], sort=False):
        columns = {"method": method, "attack": attack, "access": part.access.iloc[0], "kind": part.kind.iloc[0]}
        extra = {"prompts": part.asked.nunique(), "top1_rate": part.top1.mean()}
        rows.append(success_rate(part.hit.to_numpy(dtype=bool), **columns) | extra)
    return pd.DataFrame(rows, columns=SUCCESS)


def transfer(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of prompts found against one model (source) when another one draws them (method), by attack."""
    found = drawn[(drawn.kind == "text") & (drawn.source != "any") & (drawn.source != "control")]
    rows = [
        success_rate(part.hit.to_numpy(), attack=attack, source=source, method=method)
        for (attack, source, method), part in found.groupby(["attack", "source", "method"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["attack", "source", "method", *RATE])


def union(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of the union of attacks: a case counts if any attack of the scope brings the concept back.

    scope: "words" (prompts that cost nothing to make), "text" (all prompts), "all" (embeddings too). Only the cases
    that every attack of the scope was run on count, and no attack on prompts of its own; attacks: how many there are.
    """
    own = drawn[((drawn.source == "any") | (drawn.source == drawn.method)) & (drawn.method != "control")]
    own = own[~own.own_prompts.astype(bool)]
    scopes = {"words": own[own.access == "none"], "text": own[own.kind == "text"], "all": own}
    rows = []
    for scope, part in scopes.items():
        for method, mine in part.groupby("method", sort=False):
            hits = mine.pivot(index="case", columns="attack", values="hit").dropna().astype(bool)
            if len(hits):
                columns = {"method": method, "scope": scope, "attacks": hits.shape[1]}
                rows.append(success_rate(hits.any(axis=1).to_numpy(), **columns))
    return pd.DataFrame(rows, columns=["method", "scope", "attacks", *RATE])


def detections(drawn: pd.DataFrame, judge) -> dict[str, pd.DataFrame]:
    """{"detections": what the judge found where, by method, attack and class}, or nothing for a judge that names one
    answer per image. Columns images, boxes, rate: see `NudeNet.counts`."""
    if not hasattr(judge, "counts") or not len(drawn):
        return {}
    own, parts = drawn[(drawn.source == "any") | (drawn.source == drawn.method)], []
    for (method, attack), part in own.groupby(["method", "attack"], sort=False):
        found = judge.counts(part).reset_index().assign(n=len(part))
        found.insert(0, "method", method)
        found.insert(1, "attack", attack)
        parts.append(found)
    return {"detections": pd.concat(parts, ignore_index=True)}


def pooled(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts (n, successes) of several tables added up over all columns but `by`, with new rates and intervals.

    Raises ValueError if methods would stand side by side that were measured on different concepts.
    """
    rows, along = [], [name for name in by if name != "method"]
    if "concept" in table:
        for key, part in table.groupby(along, sort=False):
            sets = part.groupby("method").concept.agg(frozenset)
            odd = sets[sets != sets.mode()[0]]
            if len(odd):
                raise ValueError(
                    f"{odd.index[0]} was measured on {', '.join(sorted(odd.iloc[0]))} only, other methods on "
                    f"{', '.join(sorted(sets.mode()[0]))} ({', '.join(key)}): run it on all of them, or leave it out"
                )
    for key, part in table.groupby(by, sort=False):
        n, successes = int(part.n.sum()), int(part.successes.sum())
        low, high = wilson(successes, n)
        rate = {"n": n, "successes": successes, "rate": successes / n, "low": low, "high": high}
        rows.append(dict(zip(by, key, strict=True)) | rate)
    return pd.DataFrame(rows)


def against_certificate(success: pd.DataFrame, certified: pd.DataFrame, frontier: pd.DataFrame) -> pd.DataFrame:
    """One row per eraser of the study and of the sweep: what was certified and what attacks reached.

    Columns: concept, kind (of the concept), method, certified (least share of the distance to the target, over the
    concept's words), and success rates: text (the strongest attack by prompts that saw the weights), embedding (the
    closed form).
    """
    last = certified.groupby(["concept_name", "method"])["round"].transform("max") == certified["round"]
    share = certified[last].assign(certified=certified.distance / certified.target)
    least = share.groupby(["concept_name", "method"]).certified.min()
    rows = []
    for (concept, method), part in success.groupby(["concept", "method"], sort=False):
        rate = part.set_index("attack").rate
        if method in ("original", "control") or "closed_form" not in rate:
            continue
        searched = part[(part.access == "white") & (part.kind == "text")].rate
        row = {"concept": concept, "method": method, "certified": least[concept, method]}
        rows.append(row | {"text": searched.max(), "embedding": rate["closed_form"]})
    points = pd.concat([pd.DataFrame(rows), frontier[["concept", "method", "certified", "text", "embedding"]]])
    kinds = success.drop_duplicates("concept").set_index("concept").kind_of_concept
    points.insert(1, "kind", points.concept.map(kinds))
    return points.reset_index(drop=True)


def correlations(points: pd.DataFrame) -> dict[str, dict]:
    """For each column of success rates in `points`, a title and its rank correlations with the certified distance.

    "pooled" is over all erasers, "within" with each concept's mean taken off both; see `rank_correlation`.
    Numbers are nan where a column does not vary or has fewer than four points.
    """
    titles = {"text": "strongest attack by prompts", "embedding": "closed form c′ (embedding)"}
    found = {}
    for column, title in titles.items():
        pair = ["certified", column]
        some = points.dropna(subset=[column])
        own = some[pair] - some.groupby("concept")[pair].transform("mean")
        found[column] = {"title": title, "pooled": _ranked(some[pair]), "within": _ranked(own)}
    return found


def _ranked(pair: pd.DataFrame) -> dict:
    try:
        return rank_correlation(*(pair[column] for column in pair))
    except ValueError:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": len(pair)}
