"""Search of hyper-parameters at random, by the interface that Optuna's trials have."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.trainer_utils import BestRun

from bayes_adapters.errors import ConfigError, unknown_name, whole_number
from bayes_adapters.trainer._options import Options
from bayes_adapters.training._random import epoch_seed

_OURS = ("kl_weight", "kl_mode", "num_particles", "num_samples")


@dataclass
class RandomTrial:
    """Settings drawn at random, each a function of (seed, number, name).

    Args:
        seed: of the search.
        number: of the trial, from 0.
        params: what was suggested.

    >>> trial = RandomTrial(0, 3)
    >>> 1e-4 < trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True) < 1e-2, list(trial.params)
    (True, ['learning_rate'])
    """

    seed: int
    number: int
    params: dict[str, Any] = field(default_factory=dict)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Draw uniformly from [low, high], of its logarithm with ``log``; with ``step`` a multiple of it above low."""
        share = self._uniform(name)
        if log:
            return self._keep(name, math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        if step is not None:
            return self._keep(name, low + step * int(share * (int((high - low) / step + 1e-9) + 1)))
        return self._keep(name, low + share * (high - low))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Draw a whole number from low … high, uniformly, or of its logarithm."""
        if log:
            span = math.log(high + 1) - math.log(low)
            return self._keep(name, min(high, int(math.exp(math.log(low) + self._uniform(name) * span))))
        return self._keep(name, low + step * int(self._uniform(name) * ((high - low) // step + 1)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of ``choices``."""
        return self._keep(name, choices[int(self._uniform(name) * len(choices))])

    def _uniform(self, name: str) -> float:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.number, f"trial of {name}"))
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    def _keep(self, name: str, value: Any) -> Any:
        self.params[name] = value
        return value


class RandomSearch:
    """What a Trainer's search is here, whose own needs Optuna, Ray or Weights & Biases."""

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: Any = "minimize",
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Train ``n_trials`` times by settings of ``hp_space`` and return the best, a ``transformers`` BestRun.

        Args:
            hp_space: trial → name → value. The trial suggests as Optuna's does: ``suggest_float(name, low, high,
                log=True)``, ``suggest_int``, ``suggest_categorical``. Names are fields of ``TrainingArguments``,
                ``kl_weight``, ``kl_mode``, ``num_particles`` or ``num_samples``; others are for ``model_init(trial)``,
                which finds them in ``trial.params``.
            compute_objective: metrics of :meth:`evaluate` → number; None is ``eval_nll``.
            n_trials: how many.
            direction: ``"minimize"`` or ``"maximize"``.
            backend: ``"random"`` draws settings at random and needs no other package. ``"optuna"`` and ``"ray"`` are
                the Trainer's own and need that package; there ``hp_space`` names fields of ``TrainingArguments`` only,
                and everything else is up to ``model_init(trial)``. None is ``"random"``.
            hp_name: of the Trainer's backends.
            **kwargs: of the Trainer's backends; of ``"random"`` its ``seed``.
        """
        compute_objective = nll if compute_objective is None else compute_objective
        if backend in (None, "random"):
            return at_random(self, hp_space, compute_objective, n_trials, direction, **kwargs)
        own: Any = super()
        return own.hyperparameter_search(hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs)


def nll(metrics: dict[str, float]) -> float:
    """Return the NLL of an evaluation, in nats."""
    return metrics["eval_nll"]


def called(model_init: Callable[..., Any] | None, trial: Any) -> Any:
    """Call a ``model_init`` of no argument, or of one, the trial."""
    if model_init is None:
        raise ConfigError("There is no model_init=, which each trial needs for a model and guide of its own.")
    return model_init(trial) if inspect.signature(model_init).parameters else model_init()


def at_random(
    trainer: Any,
    hp_space: Callable[[Any], dict[str, Any]] | None,
    objective: Callable[[dict[str, float]], float],
    n_trials: int,
    direction: Any,
    *,
    seed: int = 0,
) -> BestRun:
    """Train and evaluate ``n_trials`` settings; the trainer keeps the last model, and its own arguments.

    Returns:
        The best run; its ``run_summary`` is a list of (hyperparameters, objective), one per trial.

    Raises:
        ConfigError: no hp_space or model_init, an unknown direction, or a name that nobody takes.
    """
    whole_number("n_trials", n_trials)
    if hp_space is None or trainer._model_init is None:
        raise ConfigError(
            "A search needs hp_space=, a function trial → {name: value}, and a trainer that was made with model_init=, "
            "a function (trial) → (model, guide), since each trial trains a model of its own."
        )
    if direction not in ("minimize", "maximize"):
        raise unknown_name("direction", str(direction), ["maximize", "minimize"])
    sign = 1.0 if direction == "minimize" else -1.0
    takes = bool(inspect.signature(trainer._model_init).parameters)
    args, options, runs = trainer.args, trainer.options, []
    try:
        for number in range(n_trials):
            trial = RandomTrial(seed, number)
            settings = hp_space(trial)
            trial.params |= settings
            trainer.args, trainer.options = _changed(args, options, settings, takes, number)
            trainer._trial, trainer._train_batch_size = trial, trainer.args.train_batch_size
            trainer.train()
            runs.append((dict(settings), float(objective(trainer.evaluate()))))
    finally:
        trainer.args, trainer.options, trainer._trial = args, options, None
        trainer._train_batch_size = args.train_batch_size
    best = min(range(n_trials), key=lambda i: (math.isnan(runs[i][1]), sign * runs[i][1]))
    return BestRun(str(best), runs[best][1], runs[best][0], runs)


def _changed(args: Any, options: Options, settings: dict[str, Any], takes: bool, number: int) -> tuple[Any, Options]:
    """Arguments and options of a trial, which writes into a folder of its own."""
    args = copy.copy(args)
    args.output_dir = os.path.join(args.output_dir, f"run-{number}")
    ours = {name: value for name, value in settings.items() if name in _OURS}
    for name, value in settings.items():
        if hasattr(args, name):
            old = getattr(args, name)
            setattr(args, name, value if old is None else type(old)(value))
        elif name not in ours and not takes:
            raise unknown_name("hyper-parameter", name, [*_OURS, "a field of TrainingArguments"])
    return args, replace(options, **ours)
