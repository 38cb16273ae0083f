"""Differences between methods on the same pairs, with bootstrap intervals over what the recordings say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import PairedDifference, paired_bootstrap
from examples.studies.verify_prompts.markdown import Pairs, table
from examples.studies.verify_prompts.predictions import Prediction, by_pair, resampled_together

REFERENCE = "caliber-x"
"""The method that all others are compared with."""
ALSO = (
    ("caliber-g", "lora-fusion-r36"),
    ("coco-lora", "lora-fusion-r12"),
    ("caliber-shared-kv", "lora-fusion-r12"),
    ("cola", "lora-fusion"),
    ("cola", "lora-fusion-r144"),
    ("cola", "concat-lora"),
    ("bayesian-cola", "cola"),
    ("caliber-x-fusion", "lora-fusion-temperature"),
    ("caliber-x-fusion", "cross-attention-fusion"),
    ("caliber-x-fusion-temperature", "lora-fusion-temperature"),
)
"""Further pairs: (method, what it is compared with)."""


def differences(pairs: Pairs, methods: Sequence[str], condition: str, draws: int) -> list[str]:
    """Table of accuracy, AUC and NLL, method minus :data:`REFERENCE` and :data:`ALSO`; no lines where none can be."""
    rows = []
    for method, other in (*((m, REFERENCE) for m in methods if m != REFERENCE), *ALSO):
        matched = _matched(pairs.get((method, condition), ()), pairs.get((other, condition), ()))
        if matched is None:
            continue
        a, b, y, scripts = matched
        cells = []
        for metric in (metrics.accuracy, metrics.auc, metrics.nll):
            if metric is metrics.auc:
                d = auc_difference(a, b, y, scripts, draws)
            else:  # a mean over examples: score each one once, then resample the scores
                one, two = _scores(metric, a, y), _scores(metric, b, y)
                d = paired_bootstrap(torch.mean, one, two, groups=scripts, draws=draws, seed=0)
            cells.append("–" if math.isnan(d.difference) else f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
        rows.append([f"{method} − {other}", *cells])
    return table(["difference", "accuracy", "AUC", "NLL (nats)"], rows) if rows else []


def _scores(metric: Callable[[Tensor, Tensor], float], p: Tensor, y: Tensor) -> Tensor:
    """Per-example accuracy or NLL, averaged over seeds: p is (N, seeds), y (N,), the result (N,)."""
    if metric is metrics.accuracy:
        return torch.stack([metrics.correct(s, y).double() for s in p.T], -1).mean(-1)
    return -torch.where(y[:, None] == 1, p, 1 - p).clamp(min=1e-7).log().mean(-1)


def auc_difference(
    a: Tensor, b: Tensor, y: Tensor, scripts: Sequence[str], draws: int, seed: int = 0
) -> PairedDifference:
    """Return what paired_bootstrap does for the AUC, in one product: pairs won are counted once per pair of scripts."""
    names = {g: i for i, g in enumerate(dict.fromkeys(scripts))}
    member = torch.nn.functional.one_hot(torch.tensor([names[g] for g in scripts])).double()
    up, down = member[y == 1], member[y == 0]
    if not len(up) or not len(down):
        return PairedDifference(math.nan, math.nan, math.nan)
    won = torch.zeros(len(up), len(down), dtype=torch.float64)
    for sign, p in ((0.5, a), (-0.5, b)):  # (1 + sign of the gap) / 2 is 1, ½ or 0; the ½ cancels in the difference
        for column in p.T:
            won += sign * (column[y == 1][:, None] - column[y == 0]).sign() / p.shape[1]
    by_script = up.T @ won @ down
    rng, n = torch.Generator().manual_seed(seed), len(names)
    times = torch.stack([torch.bincount(torch.randint(n, (n,), generator=rng), minlength=n) for _ in range(draws)])
    times = times.double()
    values = ((times @ by_script) * times).sum(-1) / ((times @ up.sum(0)) * (times @ down.sum(0)))
    low, high = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return PairedDifference(float(won.mean()), low, high)


def _matched(a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[Tensor, Tensor, Tensor, list[str]] | None:
    """Probabilities (N, seeds) of both, labels (N,) and what is drawn together, of the pairs that both methods have."""
    found = [by_pair(rows, "probability") for rows in (a, b)]
    seeds = sorted({r.seed for r in a} & {r.seed for r in b})
    keys = [k for k in found[0] if k in found[1] and all(s in t[k] for t in found for s in seeds)]
    groups = resampled_together(keys)
    if not seeds or len(set(groups)) < 2:
        return None
    one, two = (torch.tensor([[t[k][s] for s in seeds] for k in keys], dtype=torch.float64) for t in found)
    return one, two, torch.tensor([k[2] for k in keys]), groups
