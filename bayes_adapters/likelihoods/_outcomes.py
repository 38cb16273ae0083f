"""The outcomes of several tasks as one distribution over mappings task → value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from bayes_adapters.distributions import IGNORED
from bayes_adapters.likelihoods._task_checks import require_columns


def labelled(targets: Tensor) -> Bool[Tensor, " B"]:
    """Return shape (B,), True where an example has a label of a task: neither −100 nor, in all its reals, NaN."""
    missing = targets.isnan() if targets.is_floating_point() else targets == IGNORED
    return ~missing.reshape(len(targets), -1).all(1)


class TaskOutcomes(TorchDistribution):
    """Independent outcomes of several tasks, side by side in the columns of one tensor, as Pyro's values must be.

    Density: ``log p(y) = Σ_t [task t is labelled] (w_t log p_t(y_t) − n_t h_t)``, a task being labelled unless its
    columns are NaN, with n_t labels.

    Args:
        parts: task → distribution, all of one batch shape; a task has as many columns as its event has entries.
        weights: w, shape (number of tasks,), in their order.
        halves: task → h_t, nats per label, shape (); 0 where there is none.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        parts: Mapping[str, Any],
        weights: Tensor,
        halves: Mapping[str, Tensor] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.parts, self.weights, self.halves = dict(parts), weights, dict(halves or {})
        self.widths = [part.event_shape.numel() for part in self.parts.values()]
        shape = torch.broadcast_shapes(*(part.batch_shape for part in self.parts.values()))
        super().__init__(shape, torch.Size([sum(self.widths)]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TaskOutcomes:
        """Return the same outcomes with another batch shape."""
        parts = {name: part.expand(torch.Size(batch_shape)) for name, part in self.parts.items()}
        return TaskOutcomes(parts, self.weights, self.halves, validate_args=False)

    def pack(self, targets: Mapping[str, Tensor]) -> Float[Tensor, "B M"]:
        """Put the tasks' targets side by side; NaN where an example, or a whole task, has no label."""
        size = len(next(iter(targets.values())))
        columns: list[Tensor] = []
        for (name, _), width in zip(self.parts.items(), self.widths, strict=True):
            if name not in targets:
                columns.append(torch.full((size, width), math.nan, device=self.weights.device))
                continue
            require_columns(name, targets[name], width)
            values = targets[name].reshape(size, width)
            if not values.is_floating_point():  # float32 is exact up to 2^24
                values = values.float().masked_fill(values == IGNORED, math.nan)
            columns.append(values)
        return torch.cat(columns, 1)

    def log_prob(self, value: Float[Tensor, "... M"]) -> Float[Tensor, "..."]:
        """Return the weighted log density of the labels there are, shape = batch shape."""
        scores = torch.stack([*self.log_probs(value).values()], -1)
        found = (self.weights * scores).sum(-1)
        for (name, part), columns in zip(self.parts.items(), value.split(self.widths, -1), strict=True):
            if name in self.halves:
                found = found - self.halves[name] * _count(part, columns)
        return found

    def log_probs(
        self, value: Float[Tensor, "... M"], scores: Mapping[str, Callable[[Any, Tensor], Tensor]] | None = None
    ) -> dict[str, Float[Tensor, "..."]]:
        """Return task → log density, not weighted, 0 where an example has no label of it.

        Args:
            value: the packed targets.
            scores: task → what scores its targets under its distribution; by default ``log_prob``.
        """
        columns = value.split(self.widths, -1)
        known = [~own.isnan().all(-1) for own in columns]
        some = torch.stack([labels.any() for labels in known]).tolist()  # one wait for all tasks
        return {
            name: _scored(part, own, labels, (scores or {}).get(name))
            if any_label
            else torch.zeros(part.batch_shape, device=value.device)
            for (name, part), own, labels, any_label in zip(self.parts.items(), columns, known, some, strict=True)
        }

    def sample(self, sample_shape: Any = None) -> Float[Tensor, "... M"]:
        """Draw every task's outcome."""
        shape = torch.Size(sample_shape or ())
        drawn = [part.sample(shape).reshape(shape + self.batch_shape + (-1,)).float() for part in self.parts.values()]
        return torch.cat(drawn, -1)


def _scored(
    part: Any,
    columns: Float[Tensor, "... m"],
    known: Bool[Tensor, "..."],
    score: Callable[[Any, Tensor], Tensor] | None,
) -> Float[Tensor, "..."]:
    # A known label stands in for the unknown: it is in the support, and its score is dropped.
    stand_in = columns.reshape(-1, columns.shape[-1]).index_select(0, known.reshape(-1).int().argmax().reshape(1))[0]
    filled = torch.where(known[..., None], columns, stand_in).reshape(*columns.shape[:-1], *part.event_shape)
    if part.event_shape and _is_discrete(part):  # classes of tokens, of which some have no label
        filled = _classes(filled)
    return torch.where(known, part.log_prob(filled) if score is None else score(part, filled), 0.0)


def _count(part: Any, columns: Float[Tensor, "... m"]) -> Float[Tensor, "..."]:
    """Return how many labels are scored, shape (…); a pixel or token may count less than 1."""
    if hasattr(part, "count"):
        return part.count(_classes(columns.reshape(*columns.shape[:-1], *part.event_shape)))
    return (~columns.isnan()).sum(-1).to(columns)


def _classes(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=float(IGNORED)).long()


def _is_discrete(part: Any) -> bool:
    try:
        return bool(part.support.is_discrete)
    except NotImplementedError:  # a distribution that does not say what its support is
        return False
