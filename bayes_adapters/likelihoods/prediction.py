"""What :func:`bayes_adapters.predict` returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters.errors import DataError, unknown_name

PARTS = ("total", "aleatoric", "epistemic")
"""The uncertainty and what it is the sum of, nats."""


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive of B examples, averaged over S draws.

    Args:
        mean: predictive mean: class probabilities (B, C), P(y = 1) (B,), the expected target (B,), or, for
            :class:`bayes_adapters.likelihoods.Tagging`, class probabilities (B, T, C), zero at padding; of several
            labels or numbers per example (B, K); of masks P(y = 1) (B, H, W), or (B, H, W, C); of several tasks their
            means side by side (B, M).
        total: shape (B,), for tagging (B, T) and zero at padding, for several labels or numbers (B, K), for masks
            (B, H, W), nats: entropy of the averaged predictive; for a regression that of the Gaussian with its
            variance, an upper bound that is exact for S = 1. Of several tasks it is their sum, which bounds the entropy
            of all together from above.
        aleatoric: the same shape, nats: average entropy of a draw's predictive.
        epistemic: the same shape, nats: their difference; for classes the mutual information of target and latent
            cores, for a regression an upper bound of it. Below 1e-12, which is rounding, it is 0.
        num_samples: S; where examples differ in it, the most that one of them took.
        variance: shape (B,) or (B, K), squared units of the target: variance of the averaged predictive of numbers,
            that which ``total`` and ``log_density`` are of; None for classes.
        aleatoric_variance: the same shape: ``(1/S) Σ_s Var[y | E_s]``, the average variance of a draw's predictive.
        epistemic_variance: the same shape: ``1/(S−1) Σ_s (μ_s − μ)²``, how much the draws' means μ_s vary, and what a
            head knows of it without draws. By the law of total variance the two add up to Var[y | x], both exactly
            without bias of S; in ``variance`` the second is (1 − 1/S) of it. With S = 1 what is known without draws.
        log_density: shape (B,), nats: log of the averaged density of the batch's targets (for tagging the joint density
            of an example's labels); None without targets.
        samples: shape (S, B, …): each draw's ``mean``; None unless asked for.
        tasks: task → its own prediction, without ``log_density``; empty where there is one task. ``prediction[task]``
            is the same, with the task's ``samples``.
        local: the shape of ``aleatoric``, nats: the part of it that latents of examples or tokens make, given weights;
            None unless ``predict`` was asked for ``local_samples``. Then S counts draws of weights, a draw's predictive
            is the average over its local latents, and ``epistemic`` is what the weights alone leave open.
        draws: shape (B,), int64: each example's own S; None unless ``predict`` was given a ``tolerance``.
        error: shape (B,), units of ``mean``: half width of the interval that holds the largest number of an example's
            mean at S → ∞ with 95 %, 0 where nothing is random; None unless ``predict`` was given a ``tolerance``.

    >>> from bayes_adapters import Categorical
    >>> likelihood = Categorical(2)
    >>> draws = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]])  # logits of S = 2 draws that contradict each other
    >>> answer = likelihood.predict(likelihood.summarise(likelihood.distribution(draws)), 2)
    >>> answer.mean, answer.num_samples
    (tensor([[0.5000, 0.5000]]), 2)
    >>> [round(float(part), 3) for part in (answer.total, answer.aleatoric, answer.epistemic)]
    [0.693, 0.09, 0.603]
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    num_samples: int
    variance: Tensor | None = None
    log_density: Tensor | None = None
    samples: Tensor | None = None
    tasks: Mapping[str, Prediction] = field(default_factory=dict)
    aleatoric_variance: Tensor | None = None
    epistemic_variance: Tensor | None = None
    local: Tensor | None = None
    draws: Tensor | None = None
    error: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """Class probabilities (B, C), or P(y = 1) of shape (B,): ``mean`` under its name for classification."""
        return self.mean

    def __getitem__(self, task: str) -> Prediction:
        """Return the prediction of one task, with its part of ``samples``.

        Raises:
            ConfigError: there is no such task.
        """
        if task not in self.tasks:
            raise unknown_name("task", task, self.tasks)
        found = self.tasks[task]
        if self.samples is None:
            return found
        widths = [part.mean[0].numel() for part in self.tasks.values()]
        columns = self.samples.split(widths, -1)[list(self.tasks).index(task)]
        return replace(found, samples=columns.reshape(len(columns), *found.mean.shape))

    def summed(self) -> Prediction:
        """Return the prediction with total, aleatoric and epistemic summed over an example's labels: shape (B,).

        Given a draw the labels are independent, so the sum of aleatoric parts is that of all labels together; those of
        total and epistemic are upper bounds.
        """
        names = PARTS if self.local is None else (*PARTS, "local")
        parts = {name: getattr(self, name).flatten(1).sum(1) for name in names if getattr(self, name).dim() > 1}
        return replace(self, **parts)

    @property
    def epistemic_corrected(self) -> Tensor:
        """What S draws tell of the limit of ``epistemic`` for S → ∞, nats; NaN for S = 1.

        S draws spread about their own mean by (1 − 1/S) of the spread about the true one. The mutual information of
        classes is ½ Σ_c Var_s(p_c) / p̄_c plus terms of higher order in the spread; so ``epistemic`` is (1 − 1/S) of its
        limit to that order, and this is ``epistemic · S / (S − 1)``, unbiased to it. Where the spread is large beside
        p̄, that corrects somewhat too much: with p̄ = ½ and draws that are sure of either class by 3 % at S = 3, not at
        all at S = 2. Of numbers it is ``epistemic + ½ log((aleatoric_variance + epistemic_variance) / variance)``: the
        variance without its bias in the place of the mixture's, and no change where nothing was drawn.

        ``total`` and ``epistemic`` themselves are left as they are: total is the entropy of the predictive that
        ``mean`` and ``log_density`` are of, which is a mixture of S draws and no other.
        """
        each = torch.full_like(self.epistemic, float(self.num_samples))
        if self.draws is not None:
            each = each.copy_(self.draws.reshape(-1, *[1] * (each.dim() - 1)))
        if self.variance is None or self.aleatoric_variance is None or self.epistemic_variance is None:
            corrected = self.epistemic * (each / (each - 1.0))
        else:
            spread = (self.aleatoric_variance + self.epistemic_variance) / self.variance
            corrected = self.epistemic + 0.5 * spread.log()
        return torch.where(each > 1.0, corrected, math.nan)

    def rows(self, which: Tensor) -> Prediction:
        """Return the prediction of some examples.

        Args:
            which: shape (n,): int64 row numbers, or (B,): a bool mask of the rows.
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        held: dict[str, Any] = {name: value[which] for name, value in tensors.items() if name != "samples"}
        samples = None if self.samples is None else self.samples[:, which]
        return replace(self, **held, samples=samples, tasks={n: task.rows(which) for n, task in self.tasks.items()})

    def to(self, device: torch.device | str) -> Prediction:
        """Return the prediction with its tensors on ``device``, those of its tasks too."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        held: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **held, tasks={name: task.to(device) for name, task in self.tasks.items()})

    @staticmethod
    def concatenate(parts: list[Prediction]) -> Prediction:
        """Join predictions of consecutive batches; where their tokens differ in number, zeros are appended.

        Raises:
            DataError: no prediction, different numbers of draws (but of predictions that say each example's own), or a
                field (such as ``log_density``, which needs targets) that only some of them have.
        """
        if len({p.num_samples for p in parts}) != 1 and any(p.draws is None for p in parts):
            raise DataError(
                f"Predictions to join must have the same number of draws; got {[p.num_samples for p in parts][:8]}."
            )
        joined: dict[str, Any] = {}
        for name in [one.name for one in fields(parts[0]) if one.name not in ("num_samples", "tasks")]:
            values = [getattr(p, name) for p in parts if getattr(p, name) is not None]
            if values and len(values) != len(parts):
                raise DataError(
                    f"{len(values)} of {len(parts)} predictions to join have {name}. Do only some of the batches have "
                    "targets? Give all of them targets, or none."
                )
            joined[name] = _join(values, 1 if name == "samples" else 0) if values else None
        tasks = {task: Prediction.concatenate([part[task] for part in parts]) for task in parts[0].tasks}
        if tasks:  # where their tokens differ in number, so do the columns of a task
            joined["mean"] = side_by_side([task.mean for task in tasks.values()], 1)
            draws = [task.samples for task in tasks.values() if task.samples is not None]
            joined["samples"] = side_by_side(draws, 2) if draws else None
        joined["num_samples"] = max(p.num_samples for p in parts)
        return replace(parts[0], **joined, tasks={name: replace(task, samples=None) for name, task in tasks.items()})


def side_by_side(values: Sequence[Tensor], dims: int) -> Tensor:
    """Join tensors of the tasks, each with ``dims`` leading dimensions, as columns of one: shape (…, M)."""
    return torch.cat([value.flatten(dims) if value.dim() > dims else value[..., None] for value in values], -1)


def _join(values: list[Tensor], dim: int) -> Tensor:
    if values[0].dim() <= dim + 1 or len({value.shape[dim + 1] for value in values}) == 1:
        return torch.cat(values, dim)
    most = max(value.shape[dim + 1] for value in values)
    rest = [0, 0] * (values[0].dim() - dim - 2)
    return torch.cat([F.pad(v, (*rest, 0, most - v.shape[dim + 1])) for v in values], dim)
