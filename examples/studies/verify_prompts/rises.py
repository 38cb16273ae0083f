"""How much the total uncertainty rises from each step of a corruption to the next, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

import torch

from bayes_adapters.analysis.bootstrap import paired_bootstrap
from examples.studies.verify_prompts.findings import NOISES
from examples.studies.verify_prompts.markdown import Pairs, table
from examples.studies.verify_prompts.predictions import Prediction, by_pair, resampled_together


def rises(pairs: Pairs, methods: Sequence[str], draws: int) -> list[str]:
    """Tabulate ``mean total(next) − mean total(this)``, nats, for neighbouring steps from clean over noise to missing.

    Intervals are 95 %, from resampling scripts; totals are averaged over the seeds first. A step whose interval holds 0
    is level as far as these scripts can tell. No lines where nothing was measured.
    """
    ladders = [["clean", *(f"{noise}@{snr}" for snr in (20, 10, 5, 0, -5)), "missing"] for noise in NOISES]
    rows = []
    for one, two in dict.fromkeys(step for ladder in ladders for step in pairwise(ladder)):
        cells = [_rise(pairs.get((m, one), ()), pairs.get((m, two), ()), draws) for m in methods]
        if any(cell != "–" for cell in cells):
            rows.append([f"{one} → {two}", *cells])
    if not rows:
        return []
    text = "Rise of the mean total uncertainty at each step (nats), with 95 % intervals from resampling scripts:"
    return [text, "", *table(["step", *methods], rows)]


def _rise(one: Sequence[Prediction], two: Sequence[Prediction], draws: int) -> str:
    before, after = by_pair(one, "total"), by_pair(two, "total")
    keys = [key for key in before if key in after]
    groups = resampled_together(keys)
    if len(set(groups)) < 2:
        return "–"
    a, b = (torch.tensor([fmean(t[k].values()) for k in keys], dtype=torch.float64) for t in (after, before))
    d = paired_bootstrap(torch.mean, a, b, groups=groups, draws=draws, seed=0)
    return f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
