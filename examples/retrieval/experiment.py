"""One run: train, calibrate on validation recordings, and measure whether scripts are found and "no match" is known.

Recordings ask, scripts are what is chosen from. Two kinds of galleries:

* *whole*: all scripts of the test split, dual encoders only, in both directions.
* *lists* of 40: a recording's own script among others (``with``), or others only (``without``). Validation recordings
  have lists of the same size, so that what is fitted on them may be used: a temperature on lists with the partner; a
  threshold at a risk, and the score of "none", on lists of which half, drawn by the seed, lack it.

Validation recordings also choose the epoch, so the promise of the threshold is, strictly, about more than they are
exchangeable with; and it is about clean recordings.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.metrics import Decomposition, auroc, brier, decompose, ece
from bayes_adapters.analysis.no_match import NO_MATCH, MatchThreshold, NullCandidate
from bayes_adapters.analysis.retrieval import ranks, retrieval, same_group
from examples.retrieval.data import Lists, Task, lists
from examples.retrieval.methods import BASE, find
from examples.retrieval.records import Result, Row
from examples.retrieval.scoring import (
    Again,
    Scored,
    dual_scores,
    nearest,
    of_lists,
    pool_weight,
    pooled,
    scored_again,
)
from examples.retrieval.training import Settings, Trained, train

COLDEST, HOTTEST = 0.05, 100.0
CUTOFFS = (1, 5, 10)
CLEAN = "clean"
TEST_LISTS, VALIDATION_LISTS = 0, 1
"""Seeds of the lists: all methods and seeds choose from the same ones."""


class Calibration(NamedTuple):
    """What is fitted on the validation recordings."""

    temperature: TemperatureScaling
    limit: MatchThreshold
    null: NullCandidate


class Both(NamedTuple):
    """Lists of a condition, and what a method says of them; without a partner only, in other languages."""

    lists: list[Lists]
    said: list[Scored]


def run(task: Task, name: str, seed: int, settings: Settings) -> tuple[list[Result], list[Row]]:
    """Train one method with one seed, and measure it under its conditions."""
    method, dual = find(name), None
    if method.pairs:
        dual = train(task, BASE, seed, settings)
        near = {part: nearest(task, dual, task.splits[part], settings.near) for part in ("train", "validation")}
        trained = train(task, name, seed, settings, near)
    else:
        trained = train(task, name, seed, settings)
    conditions = settings.pair_conditions if method.pairs else settings.conditions
    conditions = [c for c in conditions if task.splits["test"].rows(c)]
    begun = time.perf_counter()
    held_out, weight = validation(task, trained, dual, seed, settings)
    calibration = calibrated(held_out, settings.risk)
    asked = {c: _lists(task, c, settings.size) for c in conditions}
    whole, said, again = _said(task, "test", trained, dual, asked, settings)
    if weight is not None:
        whole = {}  # a pair scorer has lists only
        said = {c: [pooled(*pair, weight) for pair in zip(said[c], again[c], strict=True)] for c in said}
    seconds = (time.perf_counter() - begun) / len(conditions)
    spent = trained.seconds + (dual.seconds if dual else 0.0)
    results: list[Result] = []
    rows: list[Row] = []
    for condition in conditions:
        own = Both(asked[condition], said[condition])
        found, some = measured(task, trained, condition, own, whole.get(condition), calibration, said[CLEAN][0])
        facts = {"seconds": seconds, "train_seconds": spent, "samples": len(own.said[0].score)}
        facts["pool"] = math.nan if weight is None else weight
        results.append(Result(**(vars(found) | facts)))
        rows += some
    return results, rows


def validation(
    task: Task, trained: Trained, dual: Trained | None, seed: int, settings: Settings
) -> tuple[Both, float | None]:
    """Return what a method says of the clean validation recordings: with the partner, and with it for half of them.

    Of a pair scorer its weight beside the dual encoder too, which the lists with the partner choose.
    """
    split = task.splits["validation"]
    rows = split.rows(CLEAN)
    source = random.Random(f"partner/{seed}")
    kinds = [number % 2 == 0 for number in range(len(rows))]
    source.shuffle(kinds)
    own = [
        lists(split, rows, settings.size, partner=there, seed=VALIDATION_LISTS) for there in ([True] * len(rows), kinds)
    ]
    _, first, again = _said(task, "validation", trained, dual, {CLEAN: own}, settings)
    if dual is None:
        return Both(own, first[CLEAN]), None
    weight = pool_weight(first[CLEAN][0], again[CLEAN][0], own[0].right)
    return Both(own, [pooled(*pair, weight) for pair in zip(first[CLEAN], again[CLEAN], strict=True)]), weight


def calibrated(held_out: Both, risk: float) -> Calibration:
    """Fit temperature, threshold and the score of "none"."""
    (with_partner, mixed), (one, two) = held_out
    relevant = _relevant(mixed)
    limit = MatchThreshold.fit(two.mean, relevant, risk=risk)
    return Calibration(temperature_of(one, with_partner.right), limit, NullCandidate.fit(two.score, relevant))


def temperature_of(said: Scored, right: Tensor) -> TemperatureScaling:
    """Return the best temperature, or :data:`HOTTEST` or :data:`COLDEST` where there is none.

    With ``β = 1/T`` the mean log-likelihood is concave, and its slope at β = 0 is ``mean(log p_y − mean_c log p_c)``.
    Where that is not positive equal probabilities are no worse; and none is colder where all answers are right.
    """
    logs = said.probs.clamp_min(1e-300).log()
    own = logs.gather(-1, right[:, None])
    if not float((own - logs.mean(-1, keepdim=True)).mean()) > 0:
        return TemperatureScaling(HOTTEST)
    if bool((own > logs.scatter(-1, right[:, None], -math.inf)).all()):
        return TemperatureScaling(COLDEST)
    fitted = TemperatureScaling.fit(said.probs, right).temperature
    return TemperatureScaling(min(max(fitted, COLDEST), HOTTEST))


def measured(
    task: Task,
    trained: Trained,
    condition: str,
    own: Both,
    whole: Float[Tensor, "S n M"] | None,
    calibration: Calibration,
    clean: Scored,
) -> tuple[Result, list[Row]]:
    """Measure one condition.

    Args:
        task: the data.
        trained: what is measured.
        condition: under which.
        own: lists with the partner, where there are any, and lists without.
        whole: scores with all scripts of the split; None of pair scorers.
        calibration: of the validation recordings.
        clean: what is said of clean lists with the partner.
    """
    split = task.splits["test"]
    rows = own.lists[-1].rows
    groups = split.groups[rows]
    facts: dict[str, float] = {}
    rank = torch.full((len(rows),), math.nan, dtype=torch.float64)
    if whole is not None:
        relevant = same_group(groups, torch.arange(len(split.scripts)))
        found = retrieval(whole.mean(0), relevant, CUTOFFS)
        rank = ranks(whole.mean(0), relevant)
        facts |= {f"recall{k}": found.recall[k] for k in CUTOFFS} | {f"back{k}": found.recall_back[k] for k in CUTOFFS}
        facts |= {"median_rank": found.median_rank, "median_rank_back": found.median_rank_back}
    with_partner = len(own.lists) == 2
    without = _no_match(own.said[-1], calibration)
    present = _no_match(own.said[0] if with_partner else clean, calibration)
    for name, field in _AUROC.items():
        facts[field] = _told_apart(without[name], present[name], -1.0 if name == "score" else 1.0)
    columns = {name: torch.full((len(rows),), math.nan, dtype=torch.float64) for name in _WITH}
    limit = calibration.limit(own.said[-1].mean) != NO_MATCH
    facts |= {"false_coverage": float(limit.double().mean()), "given_wrong": float(limit.double().mean())}
    parts = decompose(own.said[0].log_probs.exp())
    plain = dict.fromkeys(("accuracy", "nll", "brier", "ece", "auroc_ood", "auroc_ood_total"), math.nan)
    if with_partner:
        columns, more = _with_partner(own.said[0], own.lists[0].right, calibration)
        columns |= present
        facts |= more
        facts["given_wrong"] = float(torch.cat([columns["wrong"], limit.double()]).mean())
        facts["null_nll"] = float(torch.cat([columns["null_nll"], -without["none"].clamp_min(1e-300).log()]).mean())
        plain = _choice(own.said[0], own.lists[0].right, parts, decompose(clean.log_probs.exp()))
        facts["scaled_ece"] = ece(calibration.temperature.rows(own.said[0].probs), own.lists[0].right)
    columns |= {f"{name}_without": value for name, value in without.items()}
    columns |= {"rank": rank, "wrong_without": limit.double()}
    threshold = calibration.limit.threshold
    result = Result(
        trained.name, trained.seed, "test", condition, len(rows),
        auc=math.nan, auroc_error=math.nan, aurc=math.nan, samples=0, seconds=math.nan, **plain,
        total=float(parts.total.mean()), aleatoric=float(parts.aleatoric.mean()),
        epistemic=float(parts.epistemic.mean()), parameters=trained.parameters,
        temperature=calibration.temperature.temperature, threshold=math.nan if threshold is None else threshold,
        rate=trained.tried[0], weight=trained.tried[1], validation_nll=trained.validation_nll, **facts,
    )  # fmt: skip
    names = Row._fields[5:]
    table = torch.stack([columns[name] for name in names], -1).tolist()
    said = [
        Row(trained.name, trained.seed, condition, split.keys[row], str(group), *numbers)
        for row, group, numbers in zip(rows, groups.tolist(), table, strict=True)
    ]
    return result, said


_AUROC = {"score": "by_score", "total": "by_total", "epistemic": "by_epistemic", "none": "by_null"}
_WITH = ("list_rank", "nll", "scaled_nll", "right", "wrong", "score", "total", "epistemic", "none")


def _no_match(said: Scored, calibration: Calibration) -> dict[str, Float[Tensor, " Q"]]:
    """Return what could say "no match": the best mean score, total and epistemic, and P(none)."""
    parts = decompose(said.log_probs.exp())
    none = calibration.null(said.score)[:, -1]
    return {"score": said.mean.amax(-1), "total": parts.total, "epistemic": parts.epistemic, "none": none}


def _with_partner(
    said: Scored, right: Tensor, calibration: Calibration
) -> tuple[dict[str, Float[Tensor, " Q"]], dict[str, float]]:
    rows = torch.arange(len(right))
    rank = ranks(said.mean, right)
    answer = calibration.limit(said.mean)
    columns = {
        "list_rank": rank,
        "nll": -said.probs[rows, right].clamp_min(1e-300).log(),
        "scaled_nll": -calibration.temperature.rows(said.probs)[rows, right].clamp_min(1e-300).log(),
        "right": (answer == right).double(),
        "wrong": ((answer != NO_MATCH) & (answer != right)).double(),
        "null_nll": -calibration.null(said.score)[rows, right].clamp_min(1e-300).log(),
    }
    facts = {f"list{k}": float((rank <= k).double().mean()) for k in CUTOFFS[1:]}
    facts |= {"coverage": float((answer != NO_MATCH).double().mean()), "right": float(columns["right"].mean())}
    return columns, facts | {"scaled_nll": float(columns["scaled_nll"].mean())}


def _choice(said: Scored, right: Tensor, parts: Decomposition, clean: Decomposition) -> dict[str, float]:
    probs = said.probs
    shifted = torch.cat([torch.ones(len(right)), torch.zeros(len(clean.total))]).bool()
    ood = {
        name: auroc(torch.cat([getattr(parts, part), getattr(clean, part)]), shifted)
        for name, part in (("auroc_ood", "epistemic"), ("auroc_ood_total", "total"))
    }
    nll = float(-probs.gather(-1, right[:, None]).clamp_min(1e-300).log().mean())
    hits = float((ranks(said.mean, right) == 1).double().mean())
    return {"accuracy": hits, "nll": nll, "brier": brier(probs, right), "ece": ece(probs, right), **ood}


def _told_apart(without: Tensor, present: Tensor, sign: float) -> float:
    kinds = torch.cat([torch.ones(len(without)), torch.zeros(len(present))]).bool()
    return auroc(sign * torch.cat([without, present]), kinds)


def _relevant(which: Lists) -> Tensor:
    return which.right[:, None] == torch.arange(which.scripts.shape[1])


def _lists(task: Task, condition: str, size: int) -> list[Lists]:
    split = task.splits["test"]
    rows = split.rows(condition)
    kinds = (False,) if condition.startswith("ood-") else (True, False)
    return [lists(split, rows, size, partner=[there] * len(rows), seed=TEST_LISTS) for there in kinds]


def _said(
    task: Task,
    part: str,
    trained: Trained,
    dual: Trained | None,
    asked: Mapping[str, Sequence[Lists]],
    settings: Settings,
) -> tuple[dict[str, Tensor], dict[str, list[Scored]], dict[str, list[Again]]]:
    """Return a dual encoder's scores with all scripts, what it says of lists, and what a pair scorer adds."""
    split = task.splits[part]
    whole = dual_scores(task, dual or trained, split, list(asked), settings.samples)
    first = {c: [of_lists(whole[c], which, split.rows(c)) for which in some] for c, some in asked.items()}
    if dual is None:
        return whole, first, {}
    return whole, first, scored_again(task, trained, split, asked, first, settings.again, settings.pair_samples)
