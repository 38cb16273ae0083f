"""Taking ranks out of a trained adapter: scores, removal in place, a schedule for training, and a log.

A rank i of a layer is row i of A, column i of B and their variances. Its score is the log of its dropout rate σ²/μ², in
the middle of its entries::

    score_i = ½ [ median_j (log σ_i² − log(M_ij² + 1e-8)) + median_k (log σ_i² − log(L_ki² + 1e-8)) ]

0: the noise is as large as the signal; 3: its variance is 20 times the signal's square. A fresh adapter scores about
3.6 (B starts at ±0.001, log σ² at −8): a threshold of 2 would take everything out, so wait until B has grown.

Source: BayesLoRA, arXiv 2506.22809 v3, and its released code (thresholds 2 to 5).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Site, SiteCall
from bayes_adapters.surgery._checks import (
    require_finite_scores,
    require_ranks_left,
    require_threshold,
    require_times,
    required_normal,
)
from bayes_adapters.surgery._ranks import cut, require_factors

_EPS = 1e-8


@dataclass(frozen=True)
class PruneRecord:
    """What one call of :func:`prune` did.

    Args:
        step: optimiser steps taken by then; None outside training.
        threshold: τ.
        scores: layer path → score of each rank it had.
        kept: layer path → numbers of the ranks that are left, among those it had.
    """

    step: int | None
    threshold: float
    scores: dict[str, list[float]]
    kept: dict[str, list[int]]

    @property
    def before(self) -> dict[str, int]:
        """Layer path → ranks it had."""
        return {path: len(values) for path, values in self.scores.items()}

    @property
    def after(self) -> dict[str, int]:
        """Layer path → ranks it has now."""
        return {path: len(index) for path, index in self.kept.items()}

    @property
    def removed(self) -> int:
        """Ranks taken out, over all layers."""
        return sum(self.before.values()) - sum(self.after.values())


@torch.no_grad()
def scores(model: AdapterModel, guide: AdapterGuide, *, gauge_fix: bool = False) -> dict[str, Float[Tensor, " r"]]:
    """Return layer path → score of each of its ranks, see the module's formula; the median of two is their mean.

    Args:
        model: A and B random, one site per layer, as in StochasticFactors.
        guide: Gaussian over them, such as RankWise.
        gauge_fix: score the means ``c_i M_i`` and ``L_i / c_i``, ``c_i = sqrt(‖L_i‖ / ‖M_i‖)``, which have one norm and
            the same product; variances of single entries are rescaled with them, one that A and B share is not, as in
            the paper's code. The two medians move by opposite amounts, so the score changes only where a squared mean
            is near the 1e-8. Nothing is changed in the guide.

    Raises:
        ConfigError: the model has other random parts, or the posterior is not Gaussian.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import build
    >>> model, guide = build("bayeslora-2026", BertModel(tiny), Bernoulli(), num_data=10, rank=4)
    >>> scores(model, guide)["encoder.layer.0.attention.self.query"].shape
    torch.Size([4])
    """
    found: dict[str, Tensor] = {}
    for path, pair in require_factors(model, guide).items():
        (mean_a, variance_a), (mean_b, variance_b) = (_moments(model, guide, site) for site in pair)
        mean_b, variance_b = mean_b.mT, variance_b.mT  # (r, d_out)
        if gauge_fix:
            norms = mean_b.norm(dim=-1, keepdim=True), mean_a.norm(dim=-1, keepdim=True)
            ratio = norms[0] / norms[1]
            factor = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0).sqrt()
            mean_a, mean_b = factor * mean_a, mean_b / factor
            if not getattr(guide, "tie", False):
                variance_a, variance_b = variance_a + 2 * factor.log(), variance_b - 2 * factor.log()
        rates = [v - (m.square() + _EPS).log() for m, v in ((mean_a, variance_a), (mean_b, variance_b))]
        halves = [0.5 * rate.quantile(0.5, dim=-1) if len(rate) else rate.new_zeros(0) for rate in rates]
        found[path] = halves[0] + halves[1]
    return found


def prune(
    model: AdapterModel,
    guide: AdapterGuide,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    threshold: float,
    min_rank: int = 0,
    gauge_fix: bool = False,
    allow_empty: bool = False,
    step: int | None = None,
) -> PruneRecord:
    """Take out every rank with ``score ≥ threshold``, in place: the guide's tensors, the sites and the prior shrink.

    The scale stays α/r with the first r. A layer without ranks contributes nothing and has a KL of 0. The guide's
    ``nn.Parameter`` objects stay, so an optimiser stays valid; pass it, and its state is cut in the same way.

    Args:
        model: A and B random, one site per layer, as in StochasticFactors.
        guide: made for it, such as RankWise.
        optimizer: what trains the guide, if its training goes on.
        threshold: τ; the paper takes 2 to 5.
        min_rank: ranks that every layer keeps, those with the lowest scores.
        gauge_fix: see :func:`scores`.
        allow_empty: permit that no layer keeps any rank.
        step: written into the record.

    Raises:
        ConfigError: nothing would be left; the scores are not finite; the model or guide has no ranks to take out; the
            optimiser's state cannot be cut. Nothing was changed.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import build
    >>> model, guide = build("bayeslora-2026", BertModel(tiny), Bernoulli(), num_data=10, rank=4)
    >>> least = min(float(each.min()) for each in scores(model, guide).values())
    >>> record = prune(model, guide, threshold=least, min_rank=1)
    >>> set(record.after.values())
    {1}
    """
    require_threshold(threshold, min_rank)
    values = scores(model, guide, gauge_fix=gauge_fix)
    require_finite_scores(values)
    kept = {path: _best(each, threshold, min_rank) for path, each in values.items()}
    if not allow_empty:
        require_ranks_left(values, kept, threshold)
    cut(model, guide, optimizer, kept)
    numbers = {path: each.tolist() for path, each in values.items()}
    return PruneRecord(step, float(threshold), numbers, {path: index.tolist() for path, index in kept.items()})


@dataclass
class PruneSchedule:
    """Prune while training: ``fit(…, on_step=PruneSchedule(threshold=3.0))``.

    Args:
        threshold: τ, see :func:`prune`.
        start: optimiser steps before the first removal: the warm-up.
        every: steps between removals.
        until: no removal after this step; None means to the end.
        min_rank: ranks that every layer keeps.
        gauge_fix: see :func:`scores`.
        records: what was done, one record for each time it looked, for :func:`write_log`.

    Raises:
        ConfigError: steps or ranks that are no whole numbers, ``until`` before ``start``, or no threshold.

    >>> schedule = PruneSchedule(threshold=3.0, start=100, every=50)  # then fit(..., on_step=schedule)
    >>> schedule.records
    []
    """

    threshold: float
    start: int = 1000
    every: int = 500
    until: int | None = None
    min_rank: int = 0
    gauge_fix: bool = False
    records: list[PruneRecord] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_threshold(self.threshold, self.min_rank)
        require_times(self.start, self.every, self.until)

    def __call__(self, step: int, model: AdapterModel, guide: AdapterGuide, optimizer: torch.optim.Optimizer) -> None:
        """Prune if it is time after optimiser step ``step`` (from 1).

        Raises:
            ConfigError: as :func:`prune`.
        """
        late = self.until is not None and step > self.until
        if step < self.start or (step - self.start) % self.every or late:
            return
        options: dict[str, Any] = {"min_rank": self.min_rank, "gauge_fix": self.gauge_fix, "step": step}
        self.records.append(prune(model, guide, optimizer, threshold=self.threshold, **options))

    def state_dict(self) -> dict[str, Any]:
        """Return the records, for a checkpoint."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the records of a checkpoint."""
        self.records = [PruneRecord(**record) for record in state["records"]]


def write_log(path: str | os.PathLike[str], records: Sequence[PruneRecord]) -> None:
    """Write records as JSON: a list of objects with step, threshold, scores and kept."""
    Path(path).write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


def read_log(path: str | os.PathLike[str]) -> list[PruneRecord]:
    """Read what :func:`write_log` wrote.

    Raises:
        AdapterFileError: the file is missing, or is no such log.
    """
    try:
        return [PruneRecord(**record) for record in json.loads(Path(path).read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise AdapterFileError(f"{str(path)!r} is no log of pruning: {error}.") from error


def _moments(model: AdapterModel, guide: AdapterGuide, site: Site) -> tuple[Tensor, Tensor]:
    """Mean and log variance of one site's posterior, each of shape ``site.event``."""
    call = SiteCall(site, num_sites=len(model.sites))
    posterior = required_normal(site, base_distribution(guide.posterior(call, model.prior.of(site))))
    mean, scale = (value.expand(site.shape)[0] for value in (posterior.loc, posterior.scale))
    wide = torch.promote_types(mean.dtype, torch.float32)  # a median has no half precision
    return mean.to(wide), 2.0 * scale.to(wide).log()


def _best(score: Tensor, threshold: float, least: int) -> Tensor:
    keep = score < threshold
    if int(keep.sum()) < least:
        keep = torch.zeros_like(keep).scatter(0, score.argsort()[:least], True)
    return keep.nonzero().flatten()
