"""Train one variant: every value of the knob, one kept by validation; what its gradients were on the way."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.guides import Delta
from bayes_adapters.training import fit
from examples.studies.rates import rise_and_decline
from examples.studies.wander.problems import Problem
from examples.studies.wander.variants import Build, Variant

GROUPS = {"feature": "factor-feature", "token": "factor-token", "down": "down.", "gate": "gate.", "head": "head."}
"""What gradients are measured of → what the names of its parameters begin with."""


@dataclass(frozen=True)
class Fitted:
    """A trained variant.

    Args:
        model, guide: with the best epoch's numbers.
        rate: the chosen learning rate.
        validation_nll: of the best epoch, nats.
        parameters: how many numbers were trained.
        step_seconds: this process's processor time of an optimiser step, data and validation included.
        gradients: group, or group and depth such as ``feature.1`` → root mean square over steps of the gradient's norm.
    """

    model: AdapterModel
    guide: AdapterGuide
    rate: float
    validation_nll: float
    parameters: int
    step_seconds: float
    gradients: dict[str, float]

    def gates(self) -> list[nn.Parameter]:
        """Return the gates, one a fusion; none where nothing is fused."""
        return gates(self.model)


def gates(model: AdapterModel) -> list[nn.Parameter]:
    """Return the gates of a Wander, and nothing of other models."""
    return list(getattr(model, "gate", []))


@contextmanager
def closed(model: AdapterModel) -> Iterator[None]:
    """Close all gates within a block: what is left is what the streams say beside the product."""
    kept = [gate.detach().clone() for gate in gates(model)]
    try:
        for gate in gates(model):
            gate.data.zero_()
        yield
    finally:
        for gate, value in zip(gates(model), kept, strict=True):
            gate.data.copy_(value)


class Gradients:
    """Norms of gradients by group and depth, as the backward pass leaves them (before clipping).

    Args:
        model, guide: what is trained.
    """

    def __init__(self, model: AdapterModel, guide: AdapterGuide) -> None:
        self._squares: dict[str, float] = defaultdict(float)
        self._steps: dict[str, int] = defaultdict(int)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._add, key, number))
            for key, own in _grouped(model, guide).items()
            for number, parameter in enumerate(own)
        ]

    def _add(self, key: str, number: int, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._squares[key] += float(parameter.grad.square().sum())
            self._steps[key] += number == 0

    def norms(self) -> dict[str, float]:
        """Return the root mean square over steps, and stop listening."""
        for handle in self._handles:
            handle.remove()
        return {key: math.sqrt(value / max(1, self._steps[key])) for key, value in self._squares.items()}


def _grouped(model: AdapterModel, guide: AdapterGuide) -> dict[str, list[nn.Parameter]]:
    """Group, and group with depth where there is more than one, → parameters."""
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    deep = len(gates(model)) > 1
    named = [*model.named_parameters(), *((n.removeprefix("loc."), p) for n, p in guide.named_parameters())]
    for name, parameter in named:
        for group, start in GROUPS.items():
            if parameter.requires_grad and name.startswith(start):
                found[group].append(parameter)
                digits = [part for part in name.replace(".", "-").split("-") if part.isdigit()]
                if deep and group != "head":
                    found[f"{group}.{digits[0]}"].append(parameter)
    return dict(found)


def train(problem: Problem, variant: Variant, seed: int, rates: Sequence[float] | None = None) -> Fitted:
    """Train with every learning rate, by default of the task's settings; keep that of the lowest validation NLL."""
    tried = [train_once(problem, variant, seed, rate) for rate in rates or problem.settings.rates]
    return min(tried, key=lambda fitted: fitted.validation_nll)


def train_once(problem: Problem, variant: Variant, seed: int, rate: float) -> Fitted:
    """Train with one learning rate; the epoch with the lowest validation NLL is kept."""
    if variant.first is None:
        return _fit(problem, variant, variant.build, seed, rate, problem.settings.epochs)
    half = max(1, problem.settings.epochs // 2)
    start = _fit(problem, variant, variant.first, seed, rate, half)
    return _fit(problem, variant, variant.build, seed, rate, problem.settings.epochs - half, start.model)


def _fit(
    problem: Problem,
    variant: Variant,
    build: Build,
    seed: int,
    rate: float,
    epochs: int,
    start: AdapterModel | None = None,
) -> Fitted:
    torch.manual_seed(seed)
    model = build(problem, problem.encoders(variant.encoded))
    guide = Delta(model)
    for gate in gates(model):
        gate.data.fill_(variant.gate)
    if start is not None:
        take_over(model, start)
    data, validation = problem.training(variant.encoded, seed), problem.validation(variant.encoded)
    steps = epochs * len(data)  # type: ignore[arg-type]
    special = {id(gate) for gate in gates(model)}

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        own = [p for p in parameters if id(p) in special]
        groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in special]}]
        groups += [{"params": own, "lr": rate * variant.gate_speed}] if own else []
        return torch.optim.AdamW(groups, lr=rate)

    gradients, started = Gradients(model, guide), time.process_time()
    result = fit(
        model,
        guide,
        data,
        recipe=None,  # all variants alike, by the settings of the task
        epochs=epochs,
        optimizer=lambda parameters: optimizer(list(parameters)),
        scheduler=rise_and_decline(steps),
        kl_weight=0.0,
        clip_norm=1.0,
        validation=validation,
        num_samples=1,
        seed=seed,
        progress=False,
    )
    seconds = (time.process_time() - started) / result.steps
    count = sum(p.numel() for p in [*model.trainable_parameters().values(), *guide.parameters()])
    best = math.inf if result.best_value is None else result.best_value
    return Fitted(model, guide, rate, best, count, seconds, gradients.norms())


@torch.no_grad()
def take_over(model: AdapterModel, start: AdapterModel) -> None:
    """Copy the numbers of ``start`` into ``model`` where both have them; a wider head takes them as its first columns.

    The columns of a wider head that ``start`` lacks keep their values: the gate decides whether they say anything.
    """
    known = start.trainable_parameters()
    for name, parameter in model.trainable_parameters().items():
        if name not in known:
            continue
        if known[name].shape == parameter.shape:
            parameter.copy_(known[name])
        else:
            parameter[:, : known[name].shape[1]] = known[name]


def opened(fitted: Fitted) -> float:
    """Return the root mean square of all gates, NaN where there are none."""
    own = [gate.detach().flatten() for gate in fitted.gates()]
    return float(torch.cat(own).square().mean().sqrt()) if own else math.nan
