"""BayesLoRA of June 2025: random masks in the adapters only. Does it doubt its errors, and texts unlike its own?

    python -m examples.studies.speaking_time.bayeslora_2025 --out runs/speaking_time_2025

Rank, scale, dropout rate, weight decay, batch size and number of draws are the preset's (``systems.SYSTEMS``). To fit
three minutes of one core, query and value are adapted rather than all linear layers; learning rate and epochs were
chosen on the validation scripts, which also say which epoch is kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.systems.recipes import Decay
from examples.studies.speaking_time.data import Data
from examples.studies.speaking_time.experiment import Settings, Trained
from examples.studies.speaking_time.experiment import train as train_by
from examples.studies.speaking_time.one_seed import command, compare
from examples.studies.speaking_time.records import TEST, Result, Row
from examples.studies.speaking_time.task import Task

SYSTEM = SYSTEMS["bayeslora-2025"]
METHODS = {"lora": None, "bayeslora-2025": "token", "bayeslora-2025-global": "global"}
"""Name → granularity of the masks: one per token, as in the paper, or one per draw. LoRA has none."""
_TARGETS = ("query", "value")


def train(name: str, task: Task, settings: Settings, seed: int) -> dict[str, Trained]:
    """Train AdapterDropout with the masks of ``name``, or the same LoRA without masks."""
    torch.manual_seed(seed)
    granularity = METHODS[name]
    options: dict[str, Any] = {key: SYSTEM.model_options[key] for key in ("rank", "alpha")}
    options |= {"targets": list(_TARGETS)}
    if granularity is None:
        model, guide = build("lora", task.copy(), Gaussian(-1.0), **options)
    else:
        model, guide = build(SYSTEM.name, task.copy(), Gaussian(-1.0), granularity=granularity, **options)
    own: dict[str, Any] = {"lr": settings.lr, "epochs": settings.epochs, "clip_norm": 1.0}
    recipe = replace(SYSTEM.training, warmup=0.06, decay=Decay.LINEAR, **own)
    trained = train_by(task, model, guide, recipe, seed, draws=settings.draws)
    # Masks per token are drawn by torch's generator: one stream is much faster than one for every token, and nothing
    # but the token itself shares its mask. A mask per draw must be the same in every batch.
    return {name: replace(trained, seed=None) if granularity == "token" else trained}


def main(
    settings: Settings, *, seed: int = 0, out: Path | None = None, data: Data | None = None
) -> tuple[list[Result], list[Row]]:
    """Compare :data:`METHODS` with one seed; ``scatter.png`` goes into ``out`` too.

    See :func:`examples.studies.speaking_time.one_seed.compare`.
    """
    results, rows = compare(list(METHODS), train, None, settings, seed=seed, out=out, data=data)
    if out is not None:
        _scatter(out / "scatter.png", {n: [r for r in rows if r.method == n] for n in METHODS if METHODS[n]})
    return results, rows


def _scatter(path: Path, methods: dict[str, list[Row]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(methods), 3.8), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, methods.items(), strict=True):
        test = [r for r in rows if r.condition == TEST]
        x, y = [r.variance**0.5 for r in test], [abs(r.mean - r.log_seconds) for r in test]
        points = axes.scatter(x, y, c=[r.characters for r in test], cmap="viridis", s=14)
        axes.set_xlim(left=0.0)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("standard deviation of the mean over draws, log(s)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("absolute error, log(s)")
    figure.colorbar(points, ax=panels[-1], label="characters of the script")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__))
