"""Deterministic baselines on frozen features, and what each does when streams are withheld.

A method is fitted on the training people, chooses on the validation people, and answers for any non-empty set of
modalities that are present; the answer is P(stress) in one or more draws, so Bayesian methods fit the same interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError, unknown_name
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.probes import Probe, fit_probe, hand_features, pool
from examples.studies.body_signals.task import SPLITS, Settings, Task

Features = Mapping[str, Mapping[str, Tensor]]
"""Split → modality → shape (N, k)."""


class Fitted(Protocol):
    """A fitted method."""

    @property
    def parameters(self) -> int:
        """How many numbers were fitted, those included that an answer may not need."""
        ...

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "S N"]:
        """P(stress) of every window of a split from the ``present`` modalities alone, one row a posterior draw.

        Raises:
            ConfigError: no modality is present, or one does not exist.
        """
        ...


def check_present(present: Sequence[str]) -> list[str]:
    """Return ``present`` in the order of :data:`~examples.studies.body_signals.data.MODALITIES`."""
    for name in present:
        if name not in MODALITIES:
            raise unknown_name("modality", name, MODALITIES)
    if not present:
        raise ConfigError(f"At least one modality must be present; there are {', '.join(MODALITIES)}.")
    return [name for name in MODALITIES if name in present]


def frozen(task: Task) -> Features:
    """Mean and deviation over time of the frozen encoders' frames, 2d numbers a modality."""
    return {split: {name: pool(frames) for name, frames in task.frames[split].items()} for split in SPLITS}


def by_hand(task: Task) -> Features:
    """Seven numbers a channel of the standardised samples, without any encoder."""
    return {
        split: {name: hand_features(values) for name, values in task.signals[split].values.items()} for split in SPLITS
    }


@dataclass(frozen=True)
class LateFusion:
    """``P = sum over present m of w_m p_m``, ``w = softmax over present m of a_m``: a mixture of single probes.

    Withheld streams drop out, and the weights of the others are scaled up to sum to 1.

    Args:
        probes: modality → its own probe.
        features: what the probes read.
        logits: a, one a modality in the order of ``MODALITIES``; None averages.
    """

    probes: Mapping[str, Probe]
    features: Features
    logits: Float[Tensor, " M"] | None = None

    @property
    def parameters(self) -> int:
        return _count(self.probes) + (0 if self.logits is None else len(self.logits))

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "1 N"]:
        names = check_present(present)
        rows = [list(MODALITIES).index(name) for name in names]
        probs = torch.stack([self.probes[name].probs(self.features[split][name]) for name in names])
        logits = torch.zeros(len(MODALITIES), dtype=probs.dtype) if self.logits is None else self.logits
        return logits[rows].softmax(0)[None] @ probs


@dataclass(frozen=True)
class BestSingle:
    """The probe of the present modality that had the lowest validation NLL, alone.

    Args:
        probes: modality → its own probe.
        features: what the probes read.
        order: modalities, the best on validation first.
    """

    probes: Mapping[str, Probe]
    features: Features
    order: Sequence[str]

    @property
    def parameters(self) -> int:
        return _count(self.probes)

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "1 N"]:
        names = check_present(present)
        best = next(name for name in self.order if name in names)
        return self.probes[best].probs(self.features[split][best])[None]


@dataclass(frozen=True)
class Joint:
    """One probe on the features of all modalities; those of a withheld stream are set to their training mean.

    Args:
        probe: on the features side by side, in the order of ``MODALITIES``.
        features: what it reads.
    """

    probe: Probe
    features: Features

    @property
    def parameters(self) -> int:
        return _count({"all": self.probe})

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "1 N"]:
        names = check_present(present)
        parts, start = [], 0
        for name in MODALITIES:
            own = self.features[split][name]
            mean = self.probe.mean[start : start + own.shape[1]]
            parts.append(own.double() if name in names else mean.expand(len(own), -1))
            start += own.shape[1]
        return self.probe.probs(torch.cat(parts, -1))[None]


def _count(probes: Mapping[str, Probe]) -> int:
    return sum(probe.weight.numel() + 1 for probe in probes.values())


def _singles(task: Task, settings: Settings, features: Features) -> dict[str, Probe]:
    train, validation = task.signals["train"].labels, task.signals["validation"].labels
    own = ((name, features["train"][name], features["validation"][name]) for name in MODALITIES)
    return {name: fit_probe(a, train, b, validation, settings.l2) for name, a, b in own}


def _late_average(task: Task, settings: Settings) -> Fitted:
    features = frozen(task)
    return LateFusion(_singles(task, settings, features), features)


def _late_weighted(task: Task, settings: Settings) -> Fitted:
    features = frozen(task)
    probes = _singles(task, settings, features)
    probs = torch.stack([probes[name].probs(features["validation"][name]) for name in MODALITIES])
    return LateFusion(probes, features, fit_weights(probs, task.signals["validation"].labels))


def fit_weights(probs: Float[Tensor, "M N"], labels: Tensor, decay: float = 1e-3) -> Float[Tensor, " M"]:
    """Return the logits a that minimise the NLL of ``softmax(a)ᵀ probs`` plus ``decay |a|²``, from a = 0.

    Args:
        probs: P(y = 1) of M classifiers, shape (M, N), on examples they were not fitted on.
        labels: shape (N,).
        decay: keeps the weight of a useless classifier from going to minus infinity.
    """
    logits = torch.zeros(len(probs), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")
    wanted = labels.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        mixed = (logits.softmax(0) @ probs.double()).clamp(1e-7, 1 - 1e-7)
        loss = F.binary_cross_entropy(mixed, wanted) + decay * logits.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def _best_single(task: Task, settings: Settings) -> Fitted:
    features = frozen(task)
    probes = _singles(task, settings, features)
    labels = task.signals["validation"].labels.double()
    nll = {n: float(F.binary_cross_entropy(probes[n].probs(features["validation"][n]), labels)) for n in MODALITIES}
    return BestSingle(probes, features, sorted(MODALITIES, key=nll.__getitem__))


def _joint(task: Task, settings: Settings, features: Features) -> Fitted:
    train, validation = (torch.cat([features[s][n] for n in MODALITIES], -1) for s in SPLITS[:2])
    labels = task.signals["train"].labels, task.signals["validation"].labels
    return Joint(fit_probe(train, labels[0], validation, labels[1], settings.l2), features)


METHODS: dict[str, Callable[[Task, Settings], Fitted]] = {
    "single-best": _best_single,
    "late-average": _late_average,
    "late-weighted": _late_weighted,
    "linear-all": lambda task, settings: _joint(task, settings, frozen(task)),
    "linear-hand": lambda task, settings: _joint(task, settings, by_hand(task)),
}
"""Name → fit. ``linear-hand`` reads hand-made features of the same samples: what the encoders have to be worth."""


def fit(method: str, task: Task, settings: Settings) -> Fitted:
    """Fit ``method``.

    Raises:
        ConfigError: the method does not exist.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method](task, settings)
