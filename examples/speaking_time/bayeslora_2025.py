"""BayesLoRA of June 2025: random masks in the adapters only. Does it doubt its errors, and texts unlike its own?

    python -m examples.speaking_time.bayeslora_2025 --out runs/speaking_time_2025

Rank, scale, dropout rate, weight decay, batch size and number of draws are the preset's (``systems.SYSTEMS``). To fit
two minutes of one core, query and value are adapted rather than all linear layers; learning rate and epochs were chosen
on the validation scripts, which also say which epoch is kept.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, predict
from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.recipes import Decay
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.training import fit
from examples.speaking_time.data import Data, load, shortened
from examples.speaking_time.task import (
    Measured,
    Task,
    by_length,
    command,
    line,
    repeat_sd,
    spearman_interval,
    variance_ratio,
    write_json,
)

SYSTEM = SYSTEMS["bayeslora-2025"]
METHODS = {"no masks (LoRA)": None, "a mask per token": "token", "a mask per draw": "global"}
"""Name in the table → granularity of the masks; the paper's is per token."""
_TARGETS = ("query", "value")


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        epochs: passes over the 318 training scripts.
        lr: learning rate of AdamW at its peak.
        draws: S, at test.
        texts: of each other kind; None means all there are.
        rows: see :func:`examples.speaking_time.data.shortened`; None takes everything.
    """

    epochs: int = 8
    lr: float = 2e-3
    draws: int = SYSTEM.training.num_samples
    texts: int | None = None
    rows: int | None = None


QUICK = Settings(epochs=1, draws=3, texts=4, rows=96)
"""For tests: the same code, little learnt."""


def train(task: Task, granularity: str | None, settings: Settings, seed: int) -> tuple[AdapterModel, AdapterGuide]:
    """Train AdapterDropout with masks of ``granularity``, or the same LoRA without masks."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {key: SYSTEM.model_options[key] for key in ("rank", "alpha")}
    options |= {"targets": list(_TARGETS)}
    rows = task.data.train
    if granularity is None:
        model, guide = build("lora", task.copy(), Gaussian(-1.0), **options)
    else:
        model, guide = build(SYSTEM.name, task.copy(), Gaussian(-1.0), granularity=granularity, **options)
    recipe = replace(SYSTEM.training, lr=settings.lr, epochs=settings.epochs, warmup=0.06, decay=Decay.LINEAR)
    chosen = recipe.fit_options(model, guide, num_data=len(rows)) | {"num_samples": 2, "clip_norm": 1.0}
    batches = task.batches(rows, recipe.batch_size, seed)
    fit(model, guide, batches, validation=task.held_out(task.data.validation), seed=seed, progress=False, **chosen)
    return model, guide


def main(
    settings: Settings | None = None, *, seed: int = 0, out: Path | None = None, data: Data | None = None
) -> dict[str, Any]:
    """Train all three, measure them on unseen scripts and on other texts, print a table.

    Args:
        settings: None means the defaults.
        seed: of initial values, order and draws.
        out: a folder for ``metrics.json`` and ``scatter.png``.
        data: None means :func:`examples.speaking_time.data.load`.

    Returns:
        ``{"methods": name → numbers, "line_rmse": …, "length": Spearman's ρ of characters and |error|, …}``; RMSE and
        variances in log(seconds), NLL in nats, each Spearman as (ρ, low, high).
    """
    settings = settings or Settings()
    started = time.process_time()
    data = load() if data is None else data
    task = Task.make(data if settings.rows is None else shortened(data, settings.rows))
    test = by_length(task.data.test)
    scripts = [row.script for row in test]
    numbers: dict[str, Any] = {"seed": seed, "epochs": settings.epochs, "lr": settings.lr, "draws": settings.draws}
    numbers |= {"test": len(test), "line_rmse": line(task.data), "repeat_sd": repeat_sd(task.data), "methods": {}}
    measured: dict[str, Measured] = {}
    for name, granularity in METHODS.items():
        model, guide = train(task, granularity, settings, seed)
        # Masks per token are drawn by torch's generator: one stream is much faster than one for every token, and
        # nothing but the token itself shares its mask. A mask per draw must be the same in every batch.
        noise: dict[str, Any] = {"num_samples": 1 if granularity is None else settings.draws, "chunk_size": 10}
        noise |= {"seed": None if granularity == "token" else seed}
        torch.manual_seed(seed)
        found = measured[name] = task.measure(model, guide, task.data.test, **noise)
        own: dict[str, Any] = {"rmse": found.rmse, "nll": found.nll}
        if granularity is not None:
            own["variance"] = float(found.variance.mean())
            own["spearman"] = spearman_interval(found.variance, found.error.abs(), scripts, seed)
            own["variance_ratio"] = {}
            for kind, texts in task.data.elsewhere.items():
                away = predict(model, guide, task.texts(texts[: settings.texts]), return_samples=True, **noise)
                own["variance_ratio"][kind] = variance_ratio(task.variance(away), found.variance)
        numbers["methods"][name] = own
        print(f"{name}: {time.process_time() - started:.0f} s of processor time so far", file=sys.stderr, flush=True)
    length = torch.tensor([len(row.text) for row in test], dtype=torch.float64)
    errors = measured["a mask per token"].error.abs()
    numbers["length"] = {
        "error": spearman_interval(length, errors, scripts, seed),
        "variance": spearman_interval(length, measured["a mask per token"].variance, scripts, seed),
    }
    numbers["processor_seconds"] = time.process_time() - started
    print(table(numbers))
    if out is not None:
        write_json(out, numbers)
        _scatter(out / "scatter.png", {name: measured[name] for name in METHODS if METHODS[name]}, length)
    return numbers


def table(numbers: dict[str, Any]) -> str:
    """Format what :func:`main` returns as Markdown."""
    kinds = list(numbers["methods"]["a mask per token"]["variance_ratio"])
    heads = ["method", "RMSE", "NLL", "Spearman ρ(variance, abs. error)", *(f"variance × on {kind}" for kind in kinds)]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, own in numbers["methods"].items():
        ratios = [f"{own['variance_ratio'][kind]:.2f}" if "variance_ratio" in own else "–" for kind in kinds]
        rho = _interval(own["spearman"]) if "spearman" in own else "–"
        cells = [name, f"{own['rmse']:.3f}", f"{own['nll']:.3f}", rho, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| line in characters, no network | {numbers['line_rmse']:.3f} |" + " – |" * (len(heads) - 2))
    length = numbers["length"]
    lines += [
        "",
        f"{numbers['test']} recordings of unseen scripts; RMSE in log(seconds), {numbers['repeat_sd']:.3f} between "
        f"recordings of one script; {numbers['draws']} draws. Characters of a script "
        f"against abs. error (a mask per token): ρ = {_interval(length['error'])}, against variance: "
        f"ρ = {_interval(length['variance'])}.",
    ]
    return "\n".join(lines)


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return "–" if math.isnan(value) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _scatter(path: Path, methods: dict[str, Measured], length: Tensor) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(methods), 3.8), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, methods.items(), strict=True):
        points = axes.scatter(found.variance.sqrt(), found.error.abs(), c=length, cmap="viridis", s=14)
        axes.set_xlim(left=0.0)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("standard deviation of the mean over draws, log(s)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("absolute error, log(s)")
    figure.colorbar(points, ax=panels[-1], label="characters of the script")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(command(main, QUICK, __doc__))
