"""``tune``: KL weight, prior scale, temperature and any other setting chosen by the NLL of validation data."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, SupportsIndex

import torch

from bayes_adapters.analysis.width import relative_widths, warn_of_a_point
from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import NonFiniteError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.training import _data, _trials
from bayes_adapters.training._fit import fit
from bayes_adapters.training._trials import Trial as Trial
from bayes_adapters.training._tune_checks import all_diverged, check_grid, check_names, read_seeds, require_lasting

Make = Callable[..., tuple[AdapterModel, AdapterGuide]]
"""Settings of the grid → a new model and its guide, on a backbone of their own."""


@dataclass(frozen=True)
class TuneResult:
    """The best setting, its model and guide, and the record of all.

    Args:
        model, guide: trained with the best setting and the first seed.
        settings: name → value of the grid.
        temperature: τ of the posterior; the guide has it as ``posterior_temperature``, so ``predict(model, guide, …)``
            and a saved adapter use it.
        nll: of the validation data under them, nats, averaged over seeds: a minimum over the grid, and so too good.
        trials: every setting, seed and temperature, in the order in which they were tried.
        warning: the line that was warned with, if the posterior is little more than a point; else None.
    """

    model: AdapterModel = field(repr=False)
    guide: AdapterGuide = field(repr=False)
    settings: dict[str, Any]
    temperature: float
    nll: float
    trials: list[Trial] = field(repr=False)
    warning: str | None = None


def tune(
    make: Make,
    data: Iterable[Batch] | Batch,
    validation: Iterable[Batch] | Batch,
    grid: Mapping[str, Sequence[Any]],
    *,
    temperatures: Sequence[float] = (1.0,),
    seeds: Sequence[SupportsIndex] = (0,),
    num_samples: int = 16,
    folder: str | os.PathLike[str] | None = None,
    narrow: float = 0.1,
    share: float = 0.01,
    progress: bool = True,
    **options: Any,
) -> TuneResult:
    """Train every setting of a grid with one budget, and return the one with the lowest NLL of ``validation``.

    Formula: the smallest, over settings s and temperatures τ, of the mean over seeds of
    ``−(1/V) Σ_v log (1/S) Σ_i p(y_v | x_v, m + √τ (w_i − m))``, w_i ~ q_s with mean m: the same draws for every τ, none
    of which needs a run of its own. One seed decides the start, the order of draws and nothing else: the runs of a seed
    differ in their settings only.

    The best NLL is a minimum over noisy numbers; say what a setting is worth by data that chose nothing.

    Args:
        make: settings → (model, guide), such as ``lambda prior_scale: build("blob", backbone(), …)``; called once per
            run under the run's seed, each time with a backbone of its own. It gets the settings that ``fit`` has no
            option for.
        data: as for :func:`bayes_adapters.training.fit`.
        validation: batches with targets, which may be read again and again.
        grid: name → values: options of ``fit`` (``kl_weight``, ``optimizer``, …) and settings of ``make``; all
            combinations are tried. A weight that is given counts in the mode that is given: add ``kl_mode=`` where it
            is not ``"full"``.
        temperatures: τ of the posterior, tried on every run; see :func:`bayes_adapters.predict`.
        seeds: runs per setting.
        num_samples: S.
        folder: where ``trials.json`` and a checkpoint of every run are kept: a call with the same folder goes on where
            it stopped, also with a larger grid; every value must then have a ``repr`` that lasts. None keeps nothing.
        narrow: the smallest width of a site beside its prior's, and …
        share: … the smallest epistemic share, that raise no warning of the chosen posterior; see
            :func:`bayes_adapters.analysis.width.warn_of_a_point`. A guide of points raises none.
        progress: a line per run on stderr.
        **options: of ``fit``, the same for all: ``epochs`` or ``max_steps``, ``clip_norm`` and so on. With ``patience``
            or ``monitor`` each run watches ``validation`` as well.

    Raises:
        ConfigError: an empty grid, an option that is unknown, or one that would give the runs different budgets; seeds
            that are no whole numbers; with ``folder``, a value whose ``repr`` holds an address, or trials that were
            made otherwise; a temperature other than 1 of a posterior that has none, such as a head's that is
            integrated out, before anything is trained.
        AdapterFileError: the record in ``folder`` is damaged.
        NonFiniteError: every setting diverged; the reasons are listed. Where only some do, their trials say why in
            ``failure``, and the search goes on. A setting that diverges under one seed is not chosen.

    Warns:
        PointPosteriorWarning: the chosen posterior is little more than a point.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> def make(init_scale):
    ...     model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=8, rank=2)
    ...     return model, MeanField(model, init_scale=init_scale)
    >>> data = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.tensor([0.0, 1.0] * 4))
    >>> grid = {"kl_weight": [1.0, 0.01], "init_scale": [0.1, 0.05]}
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     best = tune(make, data, data, grid, temperatures=[1.0, 0.25], max_steps=2, progress=False)
    >>> len(best.trials), sorted(best.settings)
    (8, ['init_scale', 'kl_weight'])
    """
    known = [name for name in inspect.signature(fit).parameters if name not in ("model", "guide", "data")]
    check_grid(grid, temperatures, seeds)
    check_names(grid, options, make, known)
    numbers = read_seeds(seeds)
    data = _data.listed(data)
    held = _data.readable(_data.listed(validation), "validation", 2)
    about = _trials.shown({name: _stable(value) for name, value in options.items()})
    require_lasting(about | {name: _trials.shown({name: [*values]}) for name, values in grid.items()}, folder)
    about |= {"num_samples": num_samples, "data": _data.describe(data), "held": _data.describe(held)}
    sweep = _Sweep(make, data, held, known, options, num_samples, None if folder is None else Path(folder), about)
    sweep.unproved = next((float(t) for t in temperatures if t != 1.0), None)
    best: tuple[float, float, dict[str, Any], Any] | None = None
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = itertools.count(1)
    for chosen in settings:
        pairs = []
        for seed in numbers:
            pairs.append(sweep.run(chosen, seed, temperatures))
            if progress:
                sys.stderr.write(f"{sweep.line(chosen, seed, next(runs), len(settings) * len(numbers))}\n")
        for temperature in temperatures:
            nll = fmean(sweep.trial(chosen, seed, temperature).nll for seed in numbers)
            if not math.isnan(nll) and (best is None or nll < best[0]):
                best = nll, temperature, chosen, pairs[0]
    if best is None:
        raise all_diverged(sweep.done.values())
    nll, temperature, chosen, pair = best
    model, guide = sweep.train(chosen, numbers[0])[:2] if pair is None else pair
    guide.posterior_temperature = float(temperature)
    said = None
    if not guide.deterministic:
        widths = relative_widths(model, guide, next(iter(held)), temperature=temperature)
        said = warn_of_a_point(widths, sweep.answer(model, guide, temperature), narrow=narrow, share=share)
    return TuneResult(model, guide, chosen, temperature, nll, list(sweep.done.values()), said)


class _Sweep:
    """The runs of a grid, and what is known of those that are done."""

    def __init__(
        self,
        make: Make,
        data: Any,
        held: Iterable[Batch],
        known: Sequence[str],
        options: Mapping[str, Any],
        num_samples: int,
        folder: Path | None,
        about: Mapping[str, Any],
    ) -> None:
        self.make, self.data, self.held, self.known, self.options = make, data, held, known, options
        self.num_samples, self.folder, self.about = num_samples, folder, about
        self.done = {trial.key: trial for trial in ([] if folder is None else _trials.read(folder, about))}
        self.unproved: float | None = None
        """A temperature at which no posterior has been seen to predict; None where 1 is all there is, or one was."""

    def trial(self, settings: Mapping[str, Any], seed: int, temperature: float) -> Trial:
        return self.done[_trials.name_of(_trials.shown(settings)), seed, float(temperature)]

    def run(
        self, settings: Mapping[str, Any], seed: int, temperatures: Sequence[float]
    ) -> tuple[AdapterModel, AdapterGuide] | None:
        """Do a run and record it; None where it was done before, or diverged."""
        written = _trials.shown(settings)
        missing = [t for t in temperatures if (_trials.name_of(written), seed, float(t)) not in self.done]
        if not missing:
            return None
        started, trained = time.perf_counter(), None
        try:
            trained = self.train(settings, seed)
        except NonFiniteError as error:
            spent = time.perf_counter() - started
            trials = [_trials.failed(written, seed, float(t), 0, spent, str(error)) for t in missing]
        else:
            trials = [self._scored(*trained, written, seed, float(t)) for t in missing]
        self.done.update({trial.key: trial for trial in trials})
        if self.folder is not None:
            _trials.write(self.folder, self.about, list(self.done.values()))
        return None if trained is None else trained[:2]

    def _scored(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        steps: int,
        seconds: float,
        written: dict[str, Any],
        seed: int,
        temperature: float,
    ) -> Trial:
        try:
            answer = self.answer(model, guide, temperature)
        except NonFiniteError as error:
            return _trials.failed(written, seed, temperature, steps, seconds, str(error))
        widths = relative_widths(model, guide, next(iter(self.held)), temperature=temperature)
        width = median(widths.values()) if widths else float("nan")
        assert answer.log_density is not None  # read() lets only batches with targets pass
        nll, total, epistemic = (
            float(float64(part).mean()) for part in (answer.log_density, answer.total, answer.epistemic)
        )
        return Trial(written, seed, temperature, -nll, total, epistemic, width, steps, seconds)

    def train(self, settings: Mapping[str, Any], seed: int) -> tuple[AdapterModel, AdapterGuide, int, float]:
        """Return what a run has trained, its steps and seconds; from its checkpoint where it was done before."""
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(seed)
            model, guide = self.make(**{name: value for name, value in settings.items() if name not in self.known})
        if self.unproved is not None:  # a posterior without draws of its own is refused before it is trained
            with suppress(NonFiniteError):
                predict(model, guide, next(iter(self.held)), num_samples=1, temperature=self.unproved)
            self.unproved = None
        own = {name: value for name, value in settings.items() if name in self.known}
        watched = {"validation": self.held} if {"patience", "monitor"} & {*own, *self.options} else {}
        place = None if self.folder is None else self.folder / f"{_trials.name_of(_trials.shown(settings))}-{seed}"
        started = time.perf_counter()
        run = {**self.options, **own, **watched}
        result = fit(model, guide, self.data, seed=seed, checkpoint=place, progress=False, **run)
        return model, guide, result.steps, time.perf_counter() - started

    def answer(self, model: AdapterModel, guide: AdapterGuide, temperature: float) -> Prediction:
        stream = _data.read(self.held, "validation", 0)
        return predict(model, guide, stream, num_samples=self.num_samples, temperature=temperature)

    def line(self, settings: Mapping[str, Any], seed: int, number: int, count: int) -> str:
        own = [t for t in self.done.values() if t.settings == _trials.shown(settings) and t.seed == seed]
        best = min(own, key=lambda trial: math.inf if trial.failure else trial.nll)
        shown = ", ".join(f"{name} {value}" for name, value in best.settings.items())
        if best.failure:
            return f"[{number}/{count}] {shown}, seed {seed}: failed. {best.failure.splitlines()[0]}"
        return (
            f"[{number}/{count}] {shown}, seed {seed}: NLL {best.nll:.4f} nats at temperature {best.temperature:g}, "
            f"epistemic {best.epistemic:.3g} of {best.total:.3g} nats, width {best.width:.2g} of the prior's"
        )


def _stable(value: Any) -> Any:
    """A function by its name: its ``repr`` holds an address, which the next process does not have."""
    return getattr(value, "__qualname__", value)
