"""The pictures of the report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from bayes_adapters.analysis import metrics, plots
from examples.studies.verify_prompts.findings import NOISES
from examples.studies.verify_prompts.markdown import Pairs
from examples.studies.verify_prompts.predictions import Prediction


def draw_figures(folder: Path, pairs: Pairs, methods: Sequence[str]) -> list[str]:
    """Draw what the predictions allow and return the Markdown that shows it."""
    drawn, reliability, curves, parts = {}, {}, {}, {}
    for method in methods:
        rows = {c: pairs[m, c] for m, c in pairs if m == method}
        kinds = {"clean": rows.get("clean", []), "noise": [r for c in rows if "@" in c for r in rows[c]]}
        lines = {kind: metrics.reliability_bins(*_columns(some)[:2]) for kind, some in kinds.items() if some}
        pooled = [r for c in rows if c in ("clean", "missing") or "@" in c for r in rows[c]]
        if lines:
            reliability[method] = lines
        if pooled:
            p, y, total = _columns(pooled)
            curves[method] = metrics.risk_coverage(total, ~metrics.correct(p, y))
            parts[method] = {
                c: {k: _interval(rows[c], k) for k in plots.PARTS}
                for c in rows if c in ("clean", "missing") or "@" in c
            }  # fmt: skip
    if reliability:
        text = (
            "Reliability on clean speech and, pooled, in noise, all seeds together; bins of under five pairs not drawn."
        )
        drawn["reliability"] = (plots.reliability_diagram(reliability), text)
    if curves:
        text = (
            "Error rate of the answers kept, by total uncertainty: clean, noise and missing pooled, all seeds together."
        )
        drawn |= {
            f"risk_coverage{number}": (plots.risk_coverage_plot({m: curves[m] for m in group}), text + which)
            for number, which, group in _groups(list(curves))
        }
    noises = [noise for noise in NOISES if any(c.startswith(f"{noise}@") for _, c in pairs)]
    if noises:
        text = "Mean uncertainty against noise, with 95 % intervals over scripts (normal approximation)."
        for number, which, group in _groups(list(parts)):
            figure = plots.uncertainty_by_condition({m: parts[m] for m in group}, noises=noises)
            drawn[f"uncertainty{number}"] = (figure, text + which)
    lines_out = ["## Pictures", ""] if drawn else []
    for name, (figure, text) in drawn.items():
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png")
        lines_out += [f"![{text}](figures/{name}.png)", "", text, ""]
    return lines_out


def _groups(methods: Sequence[str]) -> list[tuple[str, str, Sequence[str]]]:
    """Cut the methods into as many pictures as they need to be told apart: (end of name, end of text, methods)."""
    number = -(-len(methods) // len(plots.COLOURS))
    if number == 1:
        return [("", "", methods)]
    size = -(-len(methods) // number)
    groups = [methods[i : i + size] for i in range(0, len(methods), size)]
    return [(f"_{i}", f" Picture {i} of {len(groups)}.", group) for i, group in enumerate(groups, 1)]


def _columns(rows: Sequence[Prediction]) -> tuple[Tensor, Tensor, Tensor]:
    p, y, total = (torch.tensor([r[i] for r in rows], dtype=torch.float64) for i in (7, 6, 8))
    return p, y, total


def _interval(rows: Sequence[Prediction], part: str) -> tuple[float, float, float]:
    """Mean and 95 % interval, scripts as clusters: ``SE^2 = G/(G-1) sum_g (sum_{i in g} (x_i - mean))^2 / n^2``."""
    values = [float(getattr(r, part)) for r in rows]
    centre, sums = fmean(values), defaultdict[str, float](float)
    for row, value in zip(rows, values, strict=True):
        sums[row.script] += value - centre
    g = len(sums)
    half = 1.96 * math.sqrt(g / (g - 1) * sum(s * s for s in sums.values())) / len(rows) if g > 1 else 0.0
    return centre, centre - half, centre + half
