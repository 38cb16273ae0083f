"""BayesLoRA of January 2026: one variance a rank, and ranks that the data do not need are taken out during training.

    python -m examples.speaking_time.bayeslora_2026 --out runs/speaking_time_2026

One training for each of three KL weights, from none to one that takes out most ranks, beside plain LoRA with all ranks
and with as many as were kept. Rank, scale, first variance, threshold, decay of the head's weights and number of draws
are the preset's (``systems.SYSTEMS``). It was made for 9999 steps; here are 160, to fit two minutes of one core: query
and value are adapted rather than all linear layers, log-variances learn faster, batches have 16 scripts, and ranks are
taken out from the middle of training to four fifths of it. KL weights, learning rates and epochs were chosen on the
validation scripts, which also say which epoch after the last removal is kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bayes_adapters import AdapterGuide, AdapterModel, plots, predict
from bayes_adapters.export import to_lora
from bayes_adapters.files import save
from bayes_adapters.guides import Delta
from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.models import LoRA
from bayes_adapters.pruning import PruneRecord, PruneSchedule, write_log
from bayes_adapters.recipes import Decay, Rate, Recipe
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.training import fit
from examples.speaking_time.data import Data, load, shortened
from examples.speaking_time.task import Task, command, line, repeat_sd, write_json

SYSTEM = SYSTEMS["bayeslora-2026"]
_TARGETS = ("query", "value")


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        epochs: passes over the 318 training scripts, 20 steps each.
        lr: learning rate of AdamW at its peak, for means.
        lr_log_variance: for log-variances. The paper's 1e-4 in 9999 steps is as far as 6e-3 in 160.
        kl_weights: factors of the whole KL, next to the mean nll of a batch, as in the paper's code.
        threshold: score from which on a rank is taken out.
        draws: S, at test.
        rows: see :func:`examples.speaking_time.data.shortened`; None takes everything.
    """

    epochs: int = 8
    lr: float = 2e-3
    lr_log_variance: float = 2e-2
    kl_weights: tuple[float, ...] = (0.0, 3e-5, 1e-4)
    threshold: float = 4.0
    draws: int = SYSTEM.training.num_samples
    rows: int | None = None


QUICK = Settings(epochs=3, kl_weights=(0.0, 1e-4), threshold=2.5, draws=2, rows=96)
"""For tests: the same code, little learnt."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model and guide, what was pruned, and the NLL on validation scripts that chose the epoch, in nats."""

    model: AdapterModel
    guide: AdapterGuide
    records: list[PruneRecord]
    validation_nll: float

    @property
    def ranks(self) -> int:
        """Ranks left in all layers together."""
        return sum(self.model.ranks.values())


def train(
    task: Task, kl_weight: float | None, settings: Settings, seed: int, ranks: Mapping[str, int] | None
) -> Trained:
    """Train StochasticFactors with pruning, or, where ``kl_weight`` is None, plain LoRA with ``ranks``."""
    torch.manual_seed(seed)
    rows = task.data.train
    options: dict[str, Any] = dict(SYSTEM.model_options) | {"targets": list(_TARGETS)}
    model: AdapterModel
    guide: AdapterGuide
    if kl_weight is None:
        model = LoRA(task.copy(), Gaussian(-1.0), ranks=ranks, **options)
        guide = Delta(model)
    else:
        model, guide = build(SYSTEM.name, task.copy(), Gaussian(-1.0), num_data=len(rows), **options)
    recipe = _recipe(kl_weight, settings)
    chosen = recipe.fit_options(model, guide, num_data=len(rows))
    schedule = None
    if kl_weight is not None:
        steps = chosen["max_steps"]
        schedule = PruneSchedule(settings.threshold, steps // 2, max(1, steps // 10), 4 * steps // 5)
    batches = task.batches(rows, recipe.batch_size, seed)
    chosen |= {"on_step": schedule, "validation": task.held_out(task.data.validation), "num_samples": 2}
    result = fit(model, guide, batches, seed=seed, progress=False, **chosen)
    best = float("nan") if result.best_value is None else result.best_value + task.log_spread
    return Trained(model, guide, [] if schedule is None else schedule.records, best)


def _recipe(kl_weight: float | None, settings: Settings) -> Recipe:
    rates = dict(SYSTEM.training.rates) | {"guide.log_variance.*": Rate(settings.lr_log_variance)}
    own: dict[str, Any] = {"lr": settings.lr, "epochs": settings.epochs, "kl_weight": kl_weight or 0.0}
    own |= {"steps": None, "batch_size": 16, "clip_norm": 1.0, "decay": Decay.LINEAR, "rates": rates, "prune": None}
    return replace(SYSTEM.training, **own)


def main(
    settings: Settings | None = None, *, seed: int = 0, out: Path | None = None, data: Data | None = None
) -> dict[str, Any]:
    """Train with every KL weight and both controls, measure them on unseen scripts, print a table.

    Args:
        settings: None means the defaults.
        seed: of initial values, order and draws.
        out: a folder for ``metrics.json`` and, for each KL weight, the adapter, the log of pruning and a picture of
            the ranks by layer.
        data: None means :func:`examples.speaking_time.data.load`.

    Returns:
        ``{"rows": name → numbers, "chosen": …, "line_rmse": …, …}``. A row has ranks, RMSE in log(seconds), NLL in
        nats, bytes of the saved adapter and, for the Bayesian ones, of the plain LoRA exported from it, whose
        predictions' largest distance from the adapter's at its mean is ``export_difference``, in log(seconds).
    """
    settings = settings or Settings()
    started = time.process_time()
    data = load() if data is None else data
    task = Task.make(data if settings.rows is None else shortened(data, settings.rows))
    numbers: dict[str, Any] = {"seed": seed, "settings": vars(settings), "test": len(task.data.test)}
    numbers |= {"line_rmse": line(task.data), "repeat_sd": repeat_sd(task.data), "rows": {}}
    rows: dict[str, Trained] = {}

    def note(name: str, trained: Trained) -> dict[str, Any]:
        rows[name] = trained
        draws = 1 if isinstance(trained.guide, Delta) else settings.draws
        found = task.measure(trained.model, trained.guide, task.data.test, num_samples=draws, seed=seed)
        own = {"ranks": trained.ranks, "rmse": found.rmse, "nll": found.nll, "validation_nll": trained.validation_nll}
        numbers["rows"][name] = own | {"bytes": _bytes(trained.model, trained.guide)}
        print(f"{name}: {time.process_time() - started:.0f} s of processor time so far", file=sys.stderr, flush=True)
        return numbers["rows"][name]

    for weight in settings.kl_weights:
        name = f"KL weight {weight:g}"
        trained = train(task, weight, settings, seed, None)
        own = note(name, trained)
        own["layers"] = dict(trained.model.ranks)
        own |= _export(task, trained)
        if out is not None:
            folder = out / f"kl-{weight:g}"
            save(folder / "adapter", trained.model, trained.guide)
            write_log(folder / "pruning.json", trained.records)
            plots.ranks_by_layer(trained.model.ranks, trained.model.rank).savefig(folder / "ranks.png", dpi=120)
    full = sum(dict.fromkeys(trained.model.layers, trained.model.rank).values())
    pruned = {name: found for name, found in rows.items() if found.ranks < full}
    note("plain LoRA, all ranks", train(task, None, settings, seed, None))
    numbers["chosen"] = min(pruned, key=lambda name: pruned[name].validation_nll) if pruned else None
    if pruned:
        kept = pruned[numbers["chosen"]].model.ranks
        note(f"plain LoRA, the ranks of {numbers['chosen']}", train(task, None, settings, seed, kept))
    numbers["processor_seconds"] = time.process_time() - started
    print(table(numbers))
    if out is not None:
        write_json(out, numbers)
    return numbers


def table(numbers: dict[str, Any]) -> str:
    """Format what :func:`main` returns as Markdown."""
    heads = ["method", "ranks", "RMSE", "NLL", "bytes", "bytes of exported LoRA", "its largest difference"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, own in numbers["rows"].items():
        cells = [name, str(own["ranks"]), f"{own['rmse']:.3f}", f"{own['nll']:.3f}", f"{own['bytes']:,}"]
        more = [f"{own['export_bytes']:,}", f"{own['export_difference']:.1e}"] if "export_bytes" in own else ["–", "–"]
        lines.append(f"| {' | '.join(cells + more)} |")
    lines.append(f"| line in characters, no network | – | {numbers['line_rmse']:.3f} | – | – | – | – |")
    lines += [
        "",
        f"{numbers['test']} recordings of unseen scripts; RMSE in log(seconds), {numbers['repeat_sd']:.3f} between "
        f"recordings of one script; {numbers['settings']['draws']} draws. Lowest validation NLL of those that lost "
        f"ranks: {numbers['chosen'] or 'none lost any'}.",
    ]
    return "\n".join(lines)


def _export(task: Task, trained: Trained) -> dict[str, Any]:
    """Export to plain LoRA; its size, and how far its predictions are from the adapter's at its mean."""
    lora = to_lora(trained.model, trained.guide, task.copy())
    guide = Delta(lora)
    batches = task.held_out(task.data.test)
    before = predict(trained.model, trained.guide, batches, mean_only=True).mean
    after = predict(lora, guide, batches, num_samples=1).mean
    difference = float((before.double() - after.double()).abs().max()) * task.spread
    return {"export_bytes": _bytes(lora, guide), "export_difference": difference}


def _bytes(model: AdapterModel, guide: AdapterGuide) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "adapter", model, guide)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(command(main, QUICK, __doc__))
