"""Reference posteriors of small targets: what a guide, a sampler or a post-hoc method should have found.

Each is a summary of draws by NUTS, stored with how they were made: R-hat, effective sample size, divergences. The
evidence is estimated by importance sampling about them. ``python -m bayes_adapters.testing.recreate`` makes them anew.

Source: the idea of a set of stored posteriors with reference draws is posteriordb's (Magnusson et al. 2024, arXiv
2407.04967).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import unknown_name
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.testing.targets import TARGETS, Target


@dataclass(frozen=True)
class Reference:
    """The posterior p(u | y) of all D random numbers of a target, float64. Positive hyper-parameters are logarithms.

    Args:
        target: the model and its data.
        entries: a name for every number, in the order of the vectors.
        mean: shape (D,).
        covariance: shape (D, D).
        levels: Q probabilities.
        quantiles: shape (Q, D).
        draws: some of the draws, shape (K, D).
        log_evidence: log p(y), nats.
        log_evidence_error: its standard error.
        log_density: log p(y, u), nats, at the first draws: what the model must give.
        sampler: how the draws were made, with R-hat, effective sample size and divergences.
    """

    target: Target
    entries: tuple[str, ...]
    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    levels: Float[Tensor, " Q"]
    quantiles: Float[Tensor, "Q D"]
    draws: Float[Tensor, "K D"]
    log_evidence: float
    log_evidence_error: float
    log_density: Float[Tensor, " P"]
    sampler: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.name

    @property
    def sd(self) -> Float[Tensor, " D"]:
        """Standard deviations, shape (D,)."""
        return self.covariance.diagonal().sqrt()

    @property
    def error(self) -> Float[Tensor, " D"]:
        """The standard error of the mean, ``sd / √ESS``, shape (D,)."""
        return self.sd / torch.tensor(self.sampler["effective_sample_size"], dtype=self.mean.dtype).sqrt()

    def make_model(self) -> AdapterModel:
        """Return the target's model, the same at every call: only its random weights are not fixed."""
        return self.target.make_model()

    def make_batch(self) -> Batch:
        """Return the batch of all examples, with targets."""
        return self.target.make_batch()


def reference(name: str) -> Reference:
    """Return the stored posterior of one of :data:`bayes_adapters.testing.TARGETS`.

    Args:
        name: ``"linear-core"``, ``"correlated-core"``, ``"logistic-diagonal"``, ``"logistic-core"``,
            ``"scale-funnel"`` or ``"product"``.

    Raises:
        ConfigError: there is no target of this name.

    >>> found = reference("linear-core")
    >>> found.entries[:2], found.mean.shape, max(found.sampler["r_hat"]) < 1.01
    (('core.global[0,0,0]', 'core.global[0,0,1]'), torch.Size([4]), True)
    """
    if name not in TARGETS:
        raise unknown_name("reference posterior", name, TARGETS)
    stored = files("bayes_adapters.testing") / "references" / f"{name}.json"
    return of_record(json.loads(stored.read_text(encoding="utf-8")))


def of_record(record: Mapping[str, Any]) -> Reference:
    """Return the reference that a stored record holds; see :mod:`bayes_adapters.testing.recreate`."""
    tensors = {
        key: torch.tensor(record[key], dtype=torch.float64)
        for key in ("mean", "covariance", "levels", "quantiles", "draws", "log_density")
    }
    evidence = record["log_evidence"]
    return Reference(
        TARGETS[record["name"]],
        tuple(record["entries"]),
        log_evidence=evidence["value"],
        log_evidence_error=evidence["standard_error"],
        sampler=record["sampler"],
        **tensors,
    )
