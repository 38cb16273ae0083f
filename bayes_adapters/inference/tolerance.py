"""Draws until the predictive mean of each example is known: more where draws disagree, few where they do not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import whole_number
from bayes_adapters.inference._drawn import Drawn, draw
from bayes_adapters.inference._sources import Source
from bayes_adapters.inference._tolerance_checks import require_tolerance
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Prediction

FIRST = 8
"""Draws before the first look."""
MOST = 128
"""Draws of an example, unless ``num_samples`` says another number."""
LEVEL = 0.95


@dataclass(frozen=True)
class Tolerance:
    """When an example has enough draws.

    Formula: after S = 8, 16, 32, …, ``most`` draws, L looks in all, with the draws' means μ_s and over the numbers k of
    an example's mean::

        error = t_{ν=S−1}(1 − 0.05 / L) · max_k sd_s(μ_{s,k}) / √S  ≤  tolerance

    t(p) is the half width of Student's interval that holds p. Each look has 0.05 / L of the chance to be wrong, so that
    whichever of them ends it, the interval of a number holds its limit S → ∞ with 95 %, where draws' means are about
    XX
    Args:
        tolerance: largest error, > 0: a probability, or units of the target.
        most: draws of an example, at least 2, after which it is over.
    """

    tolerance: float
    most: int = MOST

    def __post_init__(self) -> None:
        require_tolerance(self.tolerance)
        whole_number("num_samples", self.most, least=2)

    @property
    def looks(self) -> list[int]:
        """Numbers of draws after which an example is looked at.

        >>> Tolerance(0.01, 50).looks
        [8, 16, 32, 50]
        """
        found = []
        count = FIRST
        while count < self.most:
            found.append(count)
            count *= 2
        return [*found, self.most]

    def error(self, drawn: Drawn) -> Tensor:
        """Return each example's error after the draws so far, shape (B,), float64."""
        assert drawn.spread is not None
        return drawn.spread.error(1.0 - (1.0 - LEVEL) / len(self.looks))

    def predict(
        self, model: AdapterModel, source: Source, batch: Batch, ids: Tensor, samples: int, chunk: int, keep: bool
    ) -> Prediction:
        """Return the prediction of a batch; ``samples`` is ``most``, and draws are not kept."""
        if not source.is_random(batch.without_targets()):
            one = draw(model, source, batch, ids, range(1), chunk, False)
            if not one.random:
                return _finished(one.predicted(model, batch, ids.device), 1, ids.new_zeros(batch.size))
        left = torch.arange(batch.size, device=ids.device)
        drawn, parts, order, done = Drawn(), [], [], 0
        for look in self.looks:
            wide = chunk if chunk == 1 else chunk * batch.size // len(left)  # as many rows in a pass as before
            drawn = draw(model, source, batch[left], ids[left], range(done, look), wide, False, since=drawn)
            done, error = look, self.error(drawn).to(ids.device)
            known = (error <= self.tolerance) | torch.full_like(left, look == self.most, dtype=torch.bool)
            found = known.nonzero()[:, 0]
            if len(found):
                part = drawn.rows(found).predicted(model, batch[left[found]], ids.device)
                parts.append(_finished(part, look, error[found]))
                order.append(left[found])
            rest = (~known).nonzero()[:, 0]
            if not len(rest):
                break
            left, drawn = left[rest], drawn.rows(rest)
        return Prediction.concatenate(parts).rows(torch.cat(order).argsort())


def _finished(part: Prediction, count: int, error: Tensor) -> Prediction:
    draws = torch.full_like(error, count, dtype=torch.int64)
    tasks = {name: replace(task, num_samples=count, draws=draws) for name, task in part.tasks.items()}
    return replace(part, num_samples=count, draws=draws, error=error.float(), tasks=tasks)
