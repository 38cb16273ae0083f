"""Does the uncertainty know the audio? Sentences, each computed from the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from examples.studies.verify_prompts.markdown import Cells, count, mean_of, number, plain, table

NOISES = ("white", "babble")
CHANCE, MARGIN = math.log(2), 0.02
"""NLL of "I do not know" for two classes (nats), and how far above it a corruption may push a method."""
LEVEL = 1e-3
"""A drop of mean total uncertainty smaller than this (nats) counts as level."""


def audio_findings(cells: Cells, methods: Sequence[str], conditions: Sequence[str]) -> list[str]:
    """Say of each method how NLL, total and epistemic uncertainty react to the audio, and tabulate the total."""
    corrupted = [c for c in conditions if re.match(r"white@|babble@|missing$|reverb$|clip$", c)]
    foreign = [c for c in conditions if c.startswith("ood-")]
    lines = [
        f"Chance NLL is ln 2 = {CHANCE:.3f} nats; a method that does not know should say so and stay at or below "
        f"{CHANCE + MARGIN:.3f}. Total uncertainty should not fall on the way from clean over 20 … −5 dB to missing; "
        f"a drop below {LEVEL} nats counts as level. All numbers are means over seeds.",
        "",
    ]
    for method in methods:
        lines += [f"**{method}**", "", f"* Clean AUC: {plain(mean_of(cells, method, 'clean', 'auc'))}."]
        nll = {c: v for c in corrupted if not math.isnan(v := mean_of(cells, method, c, "nll"))}
        over = {c: v for c, v in nll.items() if v > CHANCE + MARGIN}
        if not nll:
            lines.append("* NLL under corruption: not measured.")
        elif over:
            listed = ", ".join(f"{c} {v:.3f}" for c, v in over.items())
            lines.append(
                f"* NLL exceeds {CHANCE + MARGIN:.3f} in {len(over)} of {count(len(nll), 'corruption')}: {listed}."
            )
        else:
            worst = max(nll, key=lambda c: nll[c])
            where = "the one corruption measured" if len(nll) == 1 else f"all {len(nll)} corruptions"
            lines.append(
                f"* NLL stays at or below {CHANCE + MARGIN:.3f} in {where}; highest {nll[worst]:.3f} ({worst})."
            )
        lines += [_monotone(cells, method, noise) for noise in NOISES]
        known = {c[4:]: v for c in foreign if not math.isnan(v := mean_of(cells, method, c, "auroc_ood"))}
        if known:
            above = sum(v > 0.5 + _by_chance(cells, method, f"ood-{c}") for c, v in known.items())
            listed = ", ".join(f"{c} {v:.3f}" for c, v in known.items())
            lines.append(
                f"* Epistemic AUROC, foreign speech against clean: {listed}; above one half by more than chance "
                f"(1.96 standard errors) in {above} of {count(len(known), 'language')}."
            )
        else:
            lines.append("* Epistemic AUROC for foreign speech: not measured.")
        lines.append("")
    ladder = [c for c in conditions if c in ("clean", "missing") or "@" in c]
    lines += ["Mean total uncertainty (nats):", ""]
    lines += table(
        ["method", *ladder], ([m, *(number(r.total for r in cells.get((m, c), ())) for c in ladder)] for m in methods)
    )
    return lines


def _by_chance(cells: Cells, method: str, condition: str) -> float:
    """1.96 standard errors of an AUROC that is one half in truth, from the two sizes; more seeds do not narrow it."""
    n = cells[method, condition][0].n
    m = cells.get((method, "clean"), cells[method, condition])[0].n
    return 1.96 * math.sqrt((n + m + 1) / (12 * n * m))


def _monotone(cells: Cells, method: str, noise: str) -> str:
    steps = ["clean", *(f"{noise}@{snr}" for snr in (20, 10, 5, 0, -5)), "missing"]
    seen = [(c, v) for c in steps if not math.isnan(v := mean_of(cells, method, c, "total"))]
    absent = [c for c in steps if c not in dict(seen)]
    note = f" (not measured: {', '.join(absent)})" if absent else ""
    if len(seen) < 2 or not any(c.startswith(noise) for c, _ in seen):
        return f"* Total uncertainty, {noise} noise: not measured."
    rise = seen[-1][1] - seen[0][1]
    ends = f"{seen[0][0]} {seen[0][1]:.3f} → {seen[-1][0]} {seen[-1][1]:.3f}"
    drops = [(a, b) for a, b in pairwise(seen) if b[1] < a[1] - LEVEL]
    if drops:
        listed = "; ".join(f"{a} {x:.3f} → {b} {y:.3f}" for (a, x), (b, y) in drops)
        return f"* Total uncertainty, {noise} noise: not monotone, it falls at {listed} (ends: {ends}){note}."
    change = f"never falls and rises by {rise:.3f} nats" if rise > LEVEL else "is level: it does not react"
    return f"* Total uncertainty, {noise} noise: {change} ({ends}){note}."
