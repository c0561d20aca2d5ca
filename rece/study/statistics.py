"""From one row per drawn image to the study's tables: success, transfer, union, and success against certificates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, norm, spearmanr, t

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
    return columns | _rate(int(hits.sum()), len(hits))


def _rate(successes: int, n: int) -> dict:
    return dict(zip(RATE, (n, successes, successes / n, *wilson(successes, n)), strict=True))


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

    settings = {"paired": True, "vectorized": False, "method": "percentile"}
    drawn = bootstrap((x, y), rho, n_resamples=repeats, rng=seed, **settings).bootstrap_distribution
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"rho": float(rho(x, y)), "low": float(low), "high": float(high), "n": len(x)}


def clustered(
    values: Sequence[float], clusters: Sequence, repeats: int = 2000, seed: int = 0, least: float = 0.0
) -> dict:
    """The mean of values that are alike within clusters, and its 95 % bootstrap interval.

    Every cluster counts the same. Clusters are resampled, then the values in each of them; of a single cluster the
    values alone. The percentiles are Hesterberg's expanded ones, with tails after Student's t. (Between the 2.5th and
    the 97.5th the truth of four clusters lies in 85 to 90 % of cases only; between these in 92 to 99 %, and of two in
    86 or more.) Where all values are equal, resampling says nothing: the interval then is as wide as the Wilson
    interval of one such answer per cluster. least: of what values can be, -1 for differences.
    Returns n, clusters, rate, low, high. Raises ValueError if there is nothing. Source: scipy; Hesterberg, What
    Teachers Should Know About the Bootstrap (The American Statistician 69, 2015).
    """
    values, (names, codes) = np.asarray(values, float), np.unique(np.asarray(clusters), return_inverse=True)
    if not len(values) or len(values) != len(codes):
        raise ValueError("values must be one number per answer, and clusters one name for each")
    parts = [values[codes == code] for code in range(len(names))]
    if len(parts) == 1:
        parts = values[:, None]
    sizes, rate = np.array([len(part) for part in parts]), float(np.mean([part.mean() for part in parts]))
    row = {"n": len(values), "clusters": len(names), "rate": rate}
    if np.ptp(values) == 0:
        half = wilson(0, len(names))[1]
        return row | {"low": max(rate - half, least), "high": min(rate + half, 1.0)}
    table, random = np.zeros((len(parts), sizes.max())), np.random.default_rng(seed)
    for line, part in zip(table, parts, strict=True):
        line[: len(part)] = part

    def mean(chosen, axis):
        inner = random.random((*chosen.shape, table.shape[1])) * sizes[chosen][..., None]
        counted = np.arange(table.shape[1]) < sizes[chosen][..., None]
        drawn = table[chosen[..., None], inner.astype(int)] * counted
        return (drawn.sum(-1) / sizes[chosen]).mean(axis)

    many = len(parts)
    tail = norm.cdf(-np.sqrt(many / (many - 1)) * t.ppf(0.975, many - 1))
    settings = {"vectorized": True, "method": "percentile", "confidence_level": 1 - 2 * tail, "batch": 200}
    found = bootstrap((np.arange(many),), mean, n_resamples=repeats, rng=seed, **settings).confidence_interval
    return row | {"low": float(min(found.low, rate)), "high": float(max(found.high, rate))}


def success(drawn: pd.DataFrame) -> pd.DataFrame:
    """Attack success by method and attack: n, successes, rate, low, high (95 % Wilson), prompts (distinct ones asked;
    each is drawn with n / prompts seeds), top1_rate (with no threshold on the judge's probability).

    drawn: see `experiment.draw_attempts`. Only attempts that were meant for the method count.
    """
    rows = []
    for (method, attack), part in _own(drawn).groupby(["method", "attack"], sort=False):
        first, more = part.iloc[0], {"prompts": part.asked.nunique(), "top1_rate": part.top1.mean()}
        rate = success_rate(part.hit, method=method, attack=attack, access=first.access, kind=first.kind)
        rows.append(rate | more)
    return pd.DataFrame(rows, columns=SUCCESS)


def _own(drawn: pd.DataFrame) -> pd.DataFrame:
    """The attempts that were meant for the method that drew them."""
    return drawn[(drawn.source == "any") | (drawn.source == drawn.method)]


def transfer(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of prompts found against one model (source) when another one draws them (method), by attack."""
    found, by = drawn[(drawn.kind == "text") & ~drawn.source.isin(["any", "control"])], ["attack", "source", "method"]
    rows = [success_rate(part.hit, **dict(zip(by, key, strict=True))) for key, part in found.groupby(by, sort=False)]
    return pd.DataFrame(rows, columns=[*by, *RATE])


def union(drawn: pd.DataFrame) -> pd.DataFrame:
    """Success of the union of attacks: a case counts if any attack of the scope brings the concept back.

    scope: "words" (prompts that cost nothing to make), "text" (all prompts), "all" (embeddings too). Only the cases
    that every attack of the scope was run on count, and no attack on prompts of its own; attacks: how many there are.
    """
    own = _own(drawn)
    own = own[(own.method != "control") & ~own.own_prompts.astype(bool)]
    scopes, rows = {"words": own[own.access == "none"], "text": own[own.kind == "text"], "all": own}, []
    for scope, part in scopes.items():
        for method, mine in part.groupby("method", sort=False):
            hits = mine.pivot(index="case", columns="attack", values="hit").dropna().astype(bool)
            if len(hits):
                rows.append(success_rate(hits.any(axis=1), method=method, scope=scope, attacks=hits.shape[1]))
    return pd.DataFrame(rows, columns=["method", "scope", "attacks", *RATE])


def detections(drawn: pd.DataFrame, judge) -> dict[str, pd.DataFrame]:
    """{"detections": what the judge found where, by method, attack and class}, or nothing for a judge that names one
    answer per image. Columns images, boxes, rate: see `NudeNet.counts`."""
    if not hasattr(judge, "counts") or not len(drawn):
        return {}
    by = ["method", "attack"]
    parts = {key: judge.counts(part).assign(n=len(part)) for key, part in _own(drawn).groupby(by, sort=False)}
    return {"detections": pd.concat(parts, names=by).reset_index()}


def pooled(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts (n, successes) of several tables added up over all columns but `by`, with new rates and intervals.

    Raises ValueError if methods would stand side by side that were measured on different concepts.
    """
    along = [name for name in by if name != "method"]
    for key, part in table.groupby(along, sort=False) if "concept" in table else ():
        sets = part.groupby("method").concept.agg(lambda some: ", ".join(sorted(set(some))))
        most = sets.mode()[0]
        odd = sets[sets != most]
        if len(odd):
            raise ValueError(
                f"{odd.index[0]} was measured on {odd.iloc[0]} only, other methods on {most} ({', '.join(key)}): "
                "run it on all of them, or leave it out"
            )
    counts = table.groupby(by, sort=False)[["successes", "n"]].sum()
    rows = [dict(zip(by, key, strict=True)) | _rate(*map(int, pair)) for key, *pair in counts.itertuples()]
    return pd.DataFrame(rows)


def against_certificate(success: pd.DataFrame, certified: pd.DataFrame, frontier: pd.DataFrame) -> pd.DataFrame:
    """One row per eraser of the study and of the sweep: what was certified and what attacks reached.

    Columns: concept, kind (of the concept), method, certified (least share of the distance to the target, over the
    concept's words), and success rates: text (the strongest attack by prompts that saw the weights), embedding (the
    closed form).
    """
    key, last = ["concept", "method"], certified.groupby(["concept_name", "method"])["round"].transform("max")
    share = (certified.distance / certified.target)[certified["round"] == last].rename("certified")
    least = share.groupby([certified.concept_name, certified.method]).min()
    searched = success[(success.access == "white") & (success.kind == "text")].groupby(key).rate.max().rename("text")
    own = success[(success.attack == "closed_form") & ~success.method.isin(["original", "control"])]
    own = own.rename(columns={"rate": "embedding"})[[*key, "embedding"]].join(least, on=key).join(searched, on=key)
    points = pd.concat([own, frontier], ignore_index=True)[[*key, "certified", "text", "embedding"]]
    kinds = success.drop_duplicates("concept").set_index("concept").kind_of_concept
    points.insert(1, "kind", points.concept.map(kinds))
    return points


def correlations(points: pd.DataFrame) -> dict[str, dict]:
    """For each column of success rates in `points`, a title and its rank correlations with the certified distance:
    rho and n.

    "pooled" is over all erasers, "within" with each concept's mean taken off both. Erasers of one concept share
    prompts and seeds, so rho has no honest interval. It is nan where a column does not vary or has fewer than four
    points.
    """
    found = {}
    for column, title in {"text": "strongest attack by prompts", "embedding": "closed form c′ (embedding)"}.items():
        pair, some = ["certified", column], points.dropna(subset=[column])
        own = some[pair] - some.groupby("concept")[pair].transform("mean")
        found[column] = {"title": title, "pooled": _ranked(some[pair]), "within": _ranked(own)}
    return found


def _ranked(pair: pd.DataFrame) -> dict:
    known = len(pair) >= 4 and pair.nunique().min() > 1
    return {"rho": float(spearmanr(*pair.to_numpy().T).statistic) if known else np.nan, "n": len(pair)}
