"""Turn the records and predictions of a run into metrics.json, predictions.csv, figures and report.md.

Every sentence of the report is computed from the numbers it is given; none is written in advance.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean as mean
from statistics import stdev

import torch
from torch import Tensor

from bayes_adapters import metrics, plots
from bayes_adapters.bootstrap import PairedDifference, paired_bootstrap
from bayes_adapters.errors import DataError
from bayes_adapters.records import Record, write_records
from examples.verify_prompts.predictions import Prediction, write_predictions

METHODS = ("lora-text", "lora-fusion", "c-lora", "caliber-g", "caliber-x", "caliber-shared-kv")
NOISES = ("white", "babble")
CONDITIONS = (
    "clean", "hard", *(f"{noise}@{snr}" for noise in NOISES for snr in (20, 10, 5, 0, -5)), "missing", "reverb", "clip",
    "ood-es", "ood-fr", "ood-it", "ood-ru",
)  # fmt: skip
REFERENCE = "caliber-x"
#: NLL of "I do not know" for two classes (nats) and how far above it a corruption may push a method.
CHANCE, MARGIN = math.log(2), 0.02
#: A drop of mean total uncertainty smaller than this (nats) counts as level.
LEVEL = 1e-3
COLUMNS: dict[str, str] = {
    "accuracy": "accuracy", "auc": "AUC", "nll": "NLL (nats)", "brier": "Brier", "ece": "ECE (15 bins)",
    "auroc_error": "AUROC error (total)", "auroc_error_epistemic": "AUROC error (epistemic)",
    "auroc_ood": "AUROC OOD (epistemic)", "auroc_ood_total": "AUROC OOD (total)", "aurc": "AURC",
}  # fmt: skip


Cells = Mapping[tuple[str, str], Sequence[Record]]
Pairs = Mapping[tuple[str, str], Sequence[Prediction]]


def write_report(
    folder: str | os.PathLike[str],
    records: Iterable[Record],
    predictions: Iterable[Prediction],
    *,
    setup: Mapping[str, str],
    split: str | None = None,
    draws: int = 1000,
) -> Path:
    """Write metrics.json, predictions.csv, figures/*.png and report.md into ``folder``; return the path of report.md.

    Args:
        folder: made when absent; files of the same name are replaced.
        records: one per method, seed, split and condition.
        predictions: the pairs behind them; the figures and paired differences come from these.
        setup: what the report says was run (backbone, data, steps, …), name → text.
        split: the split the report is about; None is the only one there is, or "test". The two data files hold all.
        draws: bootstrap resamples of each paired difference.

    Raises:
        DataError: no record, a split that is not there, or two records of one method, seed, split and condition.
    """
    records, predictions, folder = list(records), list(predictions), Path(folder)
    splits = sorted({r.split for r in records})
    split = split or (splits[0] if len(splits) == 1 else "test")
    if split not in splits:
        raise DataError(f"No record has split {split!r}; present: {', '.join(splits) or 'none'}. Pass split=….")
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    pairs: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for record in sorted((r for r in records if r.split == split), key=lambda r: r.seed):
        if any(r.seed == record.seed for r in cells[record.method, record.condition]):
            raise DataError(f"Two records of {record.method}, seed {record.seed}, {split}, {record.condition}.")
        cells[record.method, record.condition].append(record)
    for row in predictions:
        if row.split == split:
            pairs[row.method, row.condition].append(row)
    methods, conditions = _ordered((m for m, _ in cells), METHODS), _ordered((c for _, c in cells), CONDITIONS)
    seeds = sorted({r.seed for cell in cells.values() for r in cell})

    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "metrics.json", records)
    write_predictions(folder / "predictions.csv", predictions)
    lines = ["# Verifying spoken prompts: results", "", "## Setup", "", *_table(["what", "value"], setup.items())]
    lines += [
        f"Split `{split}`, {_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). {_spread(len(seeds))}",
        "",
    ]
    lines += _figures(folder, pairs, methods)
    lines += ["## Does the uncertainty know the audio?", "", *_audio(cells, methods, conditions)]
    lines += ["## Results by condition", "", *_glossary(methods, pairs)]
    for condition in conditions:
        lines += [f"### {condition}", "", *_results(cells, methods, condition)]
        lines += _differences(pairs, methods, condition, draws)
    path = folder / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _spread(seeds: int) -> str:
    if seeds == 1:
        return "One seed: nothing here says how much another training run would differ."
    return "Cells are mean ± standard deviation over seeds."


def _number(values: Iterable[float], digits: int = 3) -> str:
    """Mean, and ± standard deviation for several; an en dash when no value is defined."""
    defined = [v for v in values if not math.isnan(v)]
    if not defined:
        return "–"
    text = f"{mean(defined):.{digits}f}"
    return text + (f" ± {stdev(defined):.{digits}f}" if len(defined) > 1 else "")


def _mean(cells: Cells, method: str, condition: str, key: str) -> float:
    """Mean over seeds of one metric; NaN when it is nowhere defined."""
    values = [v for r in cells.get((method, condition), ()) if not math.isnan(v := float(getattr(r, key)))]
    return mean(values) if values else math.nan


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in ([*head], *map(list, rows))]
    return [f"| {' | '.join(c)} |" for c in (lines[0], ["---"] * len(head), *lines[1:])] + [""]


def _results(cells: Cells, methods: Sequence[str], condition: str) -> list[str]:
    here = [m for m in methods if (m, condition) in cells]
    return _table(
        ["method", "n", *COLUMNS.values()],
        (
            [m, "/".join(dict.fromkeys(str(r.n) for r in cells[m, condition]))]
            + [_number(float(getattr(r, key)) for r in cells[m, condition]) for key in COLUMNS]
            for m in here
        ),
    )


def _glossary(methods: Sequence[str], pairs: Pairs) -> list[str]:
    text = (
        "AUROC error: do wrong answers get more uncertainty than right ones. AUROC OOD: does this condition get more "
        "than the in-distribution reference. AURC: mean error rate over all coverages, most certain first, by total "
        "uncertainty. Higher is better for accuracy, AUC and AUROC, lower for the rest; – is undefined (one class, no "
        "error) or not measured."
    )
    if any((REFERENCE, c) in pairs for _, c in pairs) and len(methods) > 1:
        text += (
            f" Differences are method minus `{REFERENCE}` on the same pairs, averaged over the seeds both have, with a "
            "95 % interval from resampling scripts: it reflects the choice of test scripts, not of training seeds."
        )
    return [text, ""]


def _differences(pairs: Pairs, methods: Sequence[str], condition: str, draws: int) -> list[str]:
    rows = []
    for method in methods:
        matched = _matched(pairs.get((method, condition), ()), pairs.get((REFERENCE, condition), ()))
        if method == REFERENCE or matched is None:
            continue
        a, b, y, scripts = matched
        cells = []
        for metric in (metrics.accuracy, metrics.auc, metrics.nll):
            if metric is metrics.auc:
                d = _auc_difference(a, b, y, scripts, draws)
            else:  # a mean over examples: score each one once, then resample the scores
                one, two = _scores(metric, a, y), _scores(metric, b, y)
                d = paired_bootstrap(torch.mean, one, two, groups=scripts, draws=draws, seed=0)
            cells.append("–" if math.isnan(d.difference) else f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
        rows.append([f"{method} − {REFERENCE}", *cells])
    return _table(["difference", "accuracy", "AUC", "NLL (nats)"], rows) if rows else []


def _scores(metric: Callable[[Tensor, Tensor], float], p: Tensor, y: Tensor) -> Tensor:
    """Per-example accuracy or NLL, averaged over seeds: p is (N, seeds), y (N,), the result (N,)."""
    if metric is metrics.accuracy:
        return torch.stack([metrics.correct(s, y).double() for s in p.T], -1).mean(-1)
    return -torch.where(y[:, None] == 1, p, 1 - p).clamp(min=1e-7).log().mean(-1)


def _auc_difference(
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
    """Probabilities (N, seeds) of both, labels (N,) and scripts of the pairs that both methods have in every seed."""
    found: list[dict[tuple[str, str, int], dict[int, float]]] = [defaultdict(dict), defaultdict(dict)]
    for table, rows in zip(found, (a, b), strict=True):
        for r in rows:
            table[r.recording, r.script, r.label][r.seed] = r.probability
    seeds = sorted({r.seed for r in a} & {r.seed for r in b})
    keys = [k for k in found[0] if k in found[1] and all(s in t[k] for t in found for s in seeds)]
    if not seeds or len({k[1] for k in keys}) < 2:
        return None
    one, two = (torch.tensor([[t[k][s] for s in seeds] for k in keys], dtype=torch.float64) for t in found)
    return one, two, torch.tensor([k[2] for k in keys]), [k[1] for k in keys]


def _audio(cells: Cells, methods: Sequence[str], conditions: Sequence[str]) -> list[str]:
    corrupted = [c for c in conditions if re.match(r"white@|babble@|missing$|reverb$|clip$", c)]
    foreign = [c for c in conditions if c.startswith("ood-")]
    lines = [
        f"Chance NLL is ln 2 = {CHANCE:.3f} nats; a method that does not know should say so and stay at or below "
        f"{CHANCE + MARGIN:.3f}. Total uncertainty should not fall on the way from clean over 20 … −5 dB to missing; "
        f"a drop below {LEVEL} nats counts as level. All numbers are means over seeds.",
        "",
    ]
    for method in methods:
        lines += [f"**{method}**", "", f"* Clean AUC: {_plain(_mean(cells, method, 'clean', 'auc'))}."]
        nll = {c: v for c in corrupted if not math.isnan(v := _mean(cells, method, c, "nll"))}
        over = {c: v for c, v in nll.items() if v > CHANCE + MARGIN}
        if not nll:
            lines.append("* NLL under corruption: not measured.")
        elif over:
            listed = ", ".join(f"{c} {v:.3f}" for c, v in over.items())
            lines.append(
                f"* NLL exceeds {CHANCE + MARGIN:.3f} in {len(over)} of {_count(len(nll), 'corruption')}: {listed}."
            )
        else:
            worst = max(nll, key=lambda c: nll[c])
            where = "the one corruption measured" if len(nll) == 1 else f"all {len(nll)} corruptions"
            lines.append(
                f"* NLL stays at or below {CHANCE + MARGIN:.3f} in {where}; highest {nll[worst]:.3f} ({worst})."
            )
        lines += [_monotone(cells, method, noise) for noise in NOISES]
        known = {c[4:]: v for c in foreign if not math.isnan(v := _mean(cells, method, c, "auroc_ood"))}
        if known:
            above = sum(v > 0.5 + _by_chance(cells, method, f"ood-{c}") for c, v in known.items())
            listed = ", ".join(f"{c} {v:.3f}" for c, v in known.items())
            lines.append(
                f"* Epistemic AUROC, foreign speech against clean: {listed}; above one half by more than chance "
                f"(1.96 standard errors) in {above} of {_count(len(known), 'language')}."
            )
        else:
            lines.append("* Epistemic AUROC for foreign speech: not measured.")
        lines.append("")
    ladder = [c for c in conditions if c in ("clean", "missing") or "@" in c]
    lines += ["Mean total uncertainty (nats):", ""]
    lines += _table(
        ["method", *ladder], ([m, *(_number(r.total for r in cells.get((m, c), ())) for c in ladder)] for m in methods)
    )
    return lines


def _by_chance(cells: Cells, method: str, condition: str) -> float:
    """1.96 standard errors of an AUROC that is one half in truth, from the two sizes; more seeds do not narrow it."""
    n = cells[method, condition][0].n
    m = cells.get((method, "clean"), cells[method, condition])[0].n
    return 1.96 * math.sqrt((n + m + 1) / (12 * n * m))


def _monotone(cells: Cells, method: str, noise: str) -> str:
    steps = ["clean", *(f"{noise}@{snr}" for snr in (20, 10, 5, 0, -5)), "missing"]
    seen = [(c, v) for c in steps if not math.isnan(v := _mean(cells, method, c, "total"))]
    absent = [c for c in steps if c not in dict(seen)]
    note = f" (not measured: {', '.join(absent)})" if absent else ""
    if len(seen) < 2:
        return f"* Total uncertainty, {noise} noise: not measured."
    rise = seen[-1][1] - seen[0][1]
    ends = f"{seen[0][0]} {seen[0][1]:.3f} → {seen[-1][0]} {seen[-1][1]:.3f}"
    drops = [(a, b) for a, b in pairwise(seen) if b[1] < a[1] - LEVEL]
    if drops:
        listed = "; ".join(f"{a} {x:.3f} → {b} {y:.3f}" for (a, x), (b, y) in drops)
        return f"* Total uncertainty, {noise} noise: not monotone, it falls at {listed} (ends: {ends}){note}."
    change = f"never falls and rises by {rise:.3f} nats" if rise > LEVEL else "is level: it does not react"
    return f"* Total uncertainty, {noise} noise: {change} ({ends}){note}."


def _plain(value: float) -> str:
    return "undefined or not measured" if math.isnan(value) else f"{value:.3f}"


def _figures(folder: Path, pairs: Pairs, methods: Sequence[str]) -> list[str]:
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
        drawn["risk_coverage"] = (plots.risk_coverage_plot(curves), text)
        text = "Mean uncertainty against noise, with 95 % intervals over scripts (normal approximation)."
        drawn["uncertainty"] = (plots.uncertainty_by_condition(parts), text)
    lines_out = ["## Pictures", ""] if drawn else []
    for name, (figure, text) in drawn.items():
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png")
        lines_out += [f"![{text}](figures/{name}.png)", "", text, ""]
    return lines_out


def _columns(rows: Sequence[Prediction]) -> tuple[Tensor, Tensor, Tensor]:
    p, y, total = (torch.tensor([r[i] for r in rows], dtype=torch.float64) for i in (7, 6, 8))
    return p, y, total


def _interval(rows: Sequence[Prediction], part: str) -> tuple[float, float, float]:
    """Mean and 95 % interval, scripts as clusters: ``SE^2 = G/(G-1) sum_g (sum_{i in g} (x_i - mean))^2 / n^2``."""
    values = [float(getattr(r, part)) for r in rows]
    centre, sums = mean(values), defaultdict[str, float](float)
    for row, value in zip(rows, values, strict=True):
        sums[row.script] += value - centre
    g = len(sums)
    half = 1.96 * math.sqrt(g / (g - 1) * sum(s * s for s in sums.values())) / len(rows) if g > 1 else 0.0
    return centre, centre - half, centre + half
