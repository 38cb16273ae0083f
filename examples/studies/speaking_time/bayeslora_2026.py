"""BayesLoRA of January 2026: one variance a rank, and ranks that the data do not need are taken out during training.

    python -m examples.studies.speaking_time.bayeslora_2026 --out runs/speaking_time_2026

One training for each of three KL weights, from none to one that takes out most ranks, beside plain LoRA with all ranks
and with those that were kept. Rank, scale, first variance, threshold, decay of the head's weights and number of draws
are the preset's (``systems.SYSTEMS``). It was made for 9999 steps; here are 160, to fit three minutes of one core:
query and value are adapted rather than all linear layers, log-variances learn faster, batches have 16 scripts, and
ranks are taken out from the middle of training to four fifths of it. KL weights, learning rates and epochs were chosen
on the validation scripts, which also say which epoch after the last removal is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayes_adapters.analysis import plots
from bayes_adapters.files import save
from bayes_adapters.guides import Delta
from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.pruning import PruneSchedule, write_log
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.systems.recipes import Decay, Rate, Recipe
from examples.studies.speaking_time.data import Data
from examples.studies.speaking_time.experiment import Settings, Trained
from examples.studies.speaking_time.experiment import train as train_by
from examples.studies.speaking_time.one_seed import command, compare
from examples.studies.speaking_time.records import Result, Row
from examples.studies.speaking_time.task import Task

SYSTEM = SYSTEMS["bayeslora-2026"]
METHODS = {
    "lora-2026": None,
    "bayeslora-2026-kl-0": 0.0,
    "bayeslora-2026-kl-3e-5": 3e-5,
    "bayeslora-2026-kl-1e-4": 1e-4,
}
"""Name → factor of the whole KL, next to the mean nll of a batch, as in the paper's code. LoRA has none."""
CONTROLS = {
    "bayeslora-2026-kl-3e-5": "lora-2026-ranks-3e-5",
    "bayeslora-2026-kl-1e-4": "lora-2026-ranks-1e-4",
}
"""Name → the plain LoRA that is trained with the ranks that were left, layer by layer."""
_TARGETS = ("query", "value")


def train(name: str, task: Task, settings: Settings, seed: int) -> dict[str, Trained]:
    """Train StochasticFactors with pruning, and plain LoRA with the ranks that it kept; or plain LoRA with all."""
    kl_weight = METHODS[name]
    if kl_weight is None:
        return {name: _plain(task, settings, seed)}
    torch.manual_seed(seed)
    options: dict[str, Any] = dict(SYSTEM.model_options) | {"targets": list(_TARGETS)}
    model, guide = build(SYSTEM.name, task.copy(), Gaussian(-1.0), num_data=len(task.data.train), **options)
    recipe = _recipe(kl_weight, settings)

    def prune(steps: int) -> PruneSchedule:
        return PruneSchedule(settings.threshold, steps // 2, max(1, steps // 10), 4 * steps // 5)

    found = {name: train_by(task, model, guide, recipe, seed, draws=settings.draws, prune=prune)}
    if name in CONTROLS:
        found[CONTROLS[name]] = _plain(task, settings, seed, found[name].model.ranks)
    return found


def _plain(task: Task, settings: Settings, seed: int, ranks: Mapping[str, int] | None = None) -> Trained:
    torch.manual_seed(seed)
    options: dict[str, Any] = dict(SYSTEM.model_options) | {"targets": list(_TARGETS)}
    model = LoRA(task.copy(), Gaussian(-1.0), ranks=ranks, **options)
    return train_by(task, model, Delta(model), _recipe(0.0, settings), seed)


def _recipe(kl_weight: float, settings: Settings) -> Recipe:
    rates = dict(SYSTEM.training.rates) | {"guide.log_variance.*": Rate(settings.lr_log_variance)}
    own: dict[str, Any] = {"lr": settings.lr, "epochs": settings.epochs, "kl_weight": kl_weight}
    own |= {"steps": None, "batch_size": 16, "clip_norm": 1.0, "decay": Decay.LINEAR, "rates": rates, "prune": None}
    return replace(SYSTEM.training, **own)


def main(
    settings: Settings, *, seed: int = 0, out: Path | None = None, data: Data | None = None
) -> tuple[list[Result], list[Row]]:
    """Compare :data:`METHODS` and :data:`CONTROLS` with one seed.

    ``out`` gets a folder for each KL weight, with the adapter, the log of pruning and a picture of the ranks by layer.
    See :func:`examples.studies.speaking_time.one_seed.compare`.
    """
    keep = None if out is None else partial(_keep, out)
    return compare(list(METHODS), train, keep, settings, seed=seed, out=out, data=data)


def _keep(out: Path, name: str, trained: Trained) -> None:
    if METHODS.get(name) is not None:
        save(out / name / "adapter", trained.model, trained.guide)
        write_log(out / name / "pruning.json", trained.removals)
        plots.ranks_by_layer(trained.model.ranks, trained.model.rank).savefig(out / name / "ranks.png", dpi=120)


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__))
