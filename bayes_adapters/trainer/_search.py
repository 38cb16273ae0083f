"""Search of hyper-parameters: at random, by the interface of Optuna's trials, or by Hugging Face's own backends."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.trainer_utils import BestRun

from bayes_adapters.errors import ConfigError, unknown_name, whole_number
from bayes_adapters.trainer import _checks
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


class Search:
    """The Trainer's search of hyper-parameters, with priors, guides and the options of the ELBO among them."""

    args: Any
    options: Options
    hp_space: Any = None  # the Trainer's, of its last search
    _model_init: Any
    _trial: Any
    _space: Any = None  # as it was given to the last search
    _before: tuple[Any, Options] | None = None  # arguments and options of a search, before its trials change them

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

        Each trial begins with the arguments that the Trainer had before the search, which it has again afterwards.

        Args:
            hp_space: trial → name → value. The trial suggests as Optuna's does: ``suggest_float(name, low, high,
                log=True)``, ``suggest_int``, ``suggest_categorical``. Names are fields of ``TrainingArguments``,
                ``kl_weight``, ``kl_mode``, ``num_particles`` or ``num_samples``; others are for ``model_init(trial)``,
                which finds them in ``trial.params``. For Ray it is called with None and returns a space of Ray's.
            compute_objective: metrics of :meth:`evaluate` → number; None is ``eval_nll``.
            n_trials: how many; with Optuna's ``storage=`` how many this process adds to the study.
            direction: ``"minimize"`` or ``"maximize"``.
            backend: ``"random"``, or None, draws settings at random and needs no other package. ``"optuna"`` is the
                Trainer's own, with Optuna's samplers, pruners and storage; the Trainer has no model afterwards, and
                ``train(trial=optuna.trial.FixedTrial(best.hyperparameters))`` trains the best again. So is ``"ray"``,
                whose trial is a dictionary, also for ``model_init(trial)``.
            hp_name: of the Trainer's backends.
            **kwargs: of the Trainer's backends: ``optuna.create_study``'s (``storage``, ``study_name``,
                ``load_if_exists``, ``sampler``, ``pruner``), ``timeout``, ``n_jobs`` = 1; of ``"random"`` its ``seed``.

        Raises:
            ConfigError: no model_init, a name that nobody takes, or several trials at a time in one process.
        """
        compute_objective = nll if compute_objective is None else compute_objective
        if backend in (None, "random"):
            return at_random(self, hp_space, compute_objective, n_trials, direction, **kwargs)
        _checks.check_search(self._model_init, str(_checks.value_of(backend)), kwargs)
        own: Any = super()
        self._space, self._before = hp_space, (self.args, self.options)
        theirs = hp_space if hp_space is None or _checks.value_of(backend) != "optuna" else self._of_arguments
        try:
            return own.hyperparameter_search(theirs, compute_objective, n_trials, direction, backend, hp_name, **kwargs)
        finally:
            (self.args, self.options), self._before, self._trial = self._before, None, None

    def _of_arguments(self, trial: Any) -> dict[str, Any]:
        """Suggest everything and return what is a field of ``TrainingArguments``: the Trainer warns of the others."""
        settings = (self._space or self.hp_space)(trial)
        return {name: value for name, value in settings.items() if hasattr(self.args, name)}

    def begin_trial(self, trial: Any) -> None:
        """Take the settings of a trial of Optuna, Ray or ``FixedTrial``, before there is a model of it."""
        _checks.check_search(self._model_init)
        settings = dict(trial) if isinstance(trial, Mapping) else (self._space or self.hp_space)(trial)
        before = (self.args, self.options) if self._before is None else self._before
        takes = bool(inspect.signature(self._model_init).parameters)
        self.args, self.options = _changed(*before, settings, takes)


def nll(metrics: dict[str, float]) -> float:
    """Return the NLL of an evaluation, in nats."""
    return metrics["eval_nll"]


def called(model_init: Any, trial: Any) -> Any:
    """Call a ``model_init`` of no argument, or of one, the trial."""
    _checks.check_search(model_init)
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
            trainer.args, trainer.options = _changed(args, options, settings, takes)
            trainer.args.output_dir = os.path.join(args.output_dir, f"run-{number}")
            trainer._trial, trainer._train_batch_size = trial, trainer.args.train_batch_size
            trainer.train()
            runs.append((dict(settings), float(objective(trainer.evaluate()))))
    finally:
        trainer.args, trainer.options, trainer._trial = args, options, None
        trainer._train_batch_size = args.train_batch_size
    best = min(range(n_trials), key=lambda i: (math.isnan(runs[i][1]), sign * runs[i][1]))
    return BestRun(str(best), runs[best][1], runs[best][0], runs)


def _changed(args: Any, options: Options, settings: Mapping[str, Any], takes: bool) -> tuple[Any, Options]:
    """Arguments and options of a trial."""
    args = copy.copy(args)
    ours = {name: value for name, value in settings.items() if name in _OURS}
    for name, value in settings.items():
        if hasattr(args, name):
            old = getattr(args, name)
            broken = isinstance(value, float) and not value.is_integer()  # warmup_steps=0.1, whose default is 0
            setattr(args, name, value if old is None or broken else type(old)(value))
        elif name not in ours and not takes:
            raise unknown_name("hyper-parameter", name, [*_OURS, "a field of TrainingArguments"])
    return args, replace(options, **ours)
