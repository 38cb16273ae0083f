"""What a number of draws tell of a batch: sums over them, of which a prediction is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import student
from bayes_adapters.conditions import read_together, unchanged
from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.inference._checks import require_finite
from bayes_adapters.inference._sources import Source
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Prediction


@dataclass(frozen=True)
class Spread:
    """How far the draws' means lie apart, from sums about the first of them.

    Args:
        count: n, draws.
        origin: the first draw's mean, shape (B, …), float64.
        first: ``Σ_s (μ_s − origin)``, the same shape.
        second: ``Σ_s (μ_s − origin)²``.
    """

    count: int
    origin: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, means: Tensor, origin: Tensor | None = None) -> Spread:
        """Return that of draws' means, shape (n, B, …); sums about ``origin`` if given."""
        wide = float64(means)
        origin = wide[0] if origin is None else origin
        away = wide - origin
        return cls(len(wide), origin, away.sum(0), away.square().sum(0))

    def and_(self, other: Spread) -> Spread:
        """Return that of both together; they have one origin."""
        return Spread(self.count + other.count, self.origin, self.first + other.first, self.second + other.second)

    def rows(self, which: Tensor) -> Spread:
        """Return that of some examples."""
        which = which.to(self.first.device)
        return Spread(self.count, self.origin[which], self.first[which], self.second[which])

    def error(self, level: float) -> Tensor:
        """Return the largest half width over an example's numbers, shape (B,), of Student's interval at ``level``."""
        variance = (self.second - self.first.square() / self.count).clamp_min(0.0) / (self.count - 1)
        root = (variance.flatten(1).amax(1) if variance.dim() > 1 else variance).div(self.count).sqrt()
        return student.quantile(level, self.count - 1.0) * root


@dataclass(frozen=True)
class Drawn:
    """What some draws tell of a batch.

    Args:
        count: their number.
        sums: what the likelihood sums over them.
        densities: log p(targets | draw), shapes (n, B); none without targets.
        kept: each draw's mean, shapes (n, B, …), if kept.
        random: whether anything in the model's own code was.
        held: the draws themselves, where the likelihood looks at all of them together.
        spread: how far their means lie apart, if asked for.
    """

    count: int = 0
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    densities: Sequence[Tensor] = ()
    kept: Sequence[Tensor] = ()
    random: bool = False
    held: Sequence[Any] = ()
    spread: Spread | None = None

    def and_(self, other: Drawn) -> Drawn:
        """Return both together."""
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in other.sums.items()}
        densities, kept = [*self.densities, *other.densities], [*self.kept, *other.kept]
        held = [*self.held, *other.held]
        spread = other.spread if self.spread is None else self.spread
        if self.spread is not None and other.spread is not None:
            spread = self.spread.and_(other.spread)
        return Drawn(self.count + other.count, sums, densities, kept, self.random or other.random, held, spread)

    def rows(self, which: Tensor) -> Drawn:
        """Return what is known of some examples, of sums, densities and spread."""
        sums = {name: value[which.to(value.device)] for name, value in self.sums.items()}
        densities = [each[:, which] for each in self.densities]
        spread = None if self.spread is None else self.spread.rows(which)
        return replace(self, sums=sums, densities=densities, spread=spread)

    def predicted(self, model: AdapterModel, batch: Batch, device: torch.device) -> Prediction:
        """Return their average, on ``device``: the sums are elsewhere where the model's has no float64."""
        if model.likelihood.holds_draws:
            found = model.likelihood.predict_held(self.held, batch.targets)
            with read_together():
                require_finite(model, "The likelihood's entropy is", found.total, batch.size)
            return found.to(device)
        result = model.likelihood.predict(dict(self.sums), self.count).to(device)
        if not self.densities:
            return result
        return replace(result, log_density=torch.logsumexp(torch.cat(list(self.densities)), 0) - math.log(self.count))


def draw(
    model: AdapterModel,
    source: Source,
    batch: Batch,
    ids: Tensor,
    numbers: range,
    chunk: int,
    keep: bool,
    since: Drawn | None = None,
) -> Drawn:
    """Run the draws ``numbers``, ``chunk`` of them in a pass.

    Args:
        model: the model.
        source: of the draws.
        batch: the examples.
        ids: shape (B,), their numbers in the data set.
        numbers: of the draws.
        chunk: how many of them share a pass.
        keep: whether each draw's mean is kept.
        since: what earlier draws of the same examples told; it is then counted in, with the spread of the means.
    """
    drawn, unseen = since or Drawn(), batch.without_targets()
    with unchanged(unseen):
        for start in range(numbers.start, numbers.stop, chunk):
            some = torch.arange(start, min(start + chunk, numbers.stop), device=ids.device)
            fn, random = source.outcome(unseen, some, ids)
            means = model.likelihood.draw_mean(fn) if keep or since is not None else None
            kept = [means] if keep and means is not None else []
            if model.likelihood.holds_draws:
                drawn = drawn.and_(Drawn(len(some), kept=kept, random=random, held=[fn]))
                continue
            spread = None
            if since is not None and means is not None:
                spread = Spread.of(means, None if drawn.spread is None else drawn.spread.origin)
            densities = [] if batch.targets is None else [model.likelihood.log_density(fn, batch.targets)]
            sums = model.likelihood.summarise(fn)
            drawn = drawn.and_(Drawn(len(some), sums, densities, kept, random, spread=spread))
    with read_together():
        for name, value in drawn.sums.items():
            require_finite(model, f"The likelihood's {name!r} is", value, batch.size)
    return drawn
