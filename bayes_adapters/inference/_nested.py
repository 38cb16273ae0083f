"""The split of S · K draws, of S weights and of K local latents with each: what weights leave open, what is local."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.likelihoods import Prediction

_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Of a difference of float32 numbers, relative to them."""


def nested(whole: Prediction, parts: Sequence[Prediction]) -> Prediction:
    """Return the prediction whose epistemic part is what weights W leave open, local latents E being averaged.

    Formula, with ``p_s = (1/K) Σ_k p(y | W_s, E_k)`` and ``p̄ = (1/S) Σ_s p_s``::

        total = H[p̄]                       as ever
        epistemic = H[p̄] − (1/S) Σ_s H[p_s]                                    I(y; W)
        aleatoric = (1/S) Σ_s H[p_s]
        local = (1/S) Σ_s ( H[p_s] − (1/K) Σ_k H[p(· | W_s, E_k)] )            E_W I(y; E | W), a part of aleatoric

    Every s sees the same K noises of E, so that p_s and p_s' differ by their weights only: weights without spread have
    exactly nothing epistemic, whatever K. ``local`` is about (1 − 1/K) of its limit, as ``epistemic`` is (1 − 1/S).

    Of numbers, H is that of :class:`Prediction`, and with means m_s and variances v_s of p_s::

        epistemic_variance = 1/(S−1) Σ_s (m_s − m)²        aleatoric_variance = (1/S) Σ_s v_s

    Args:
        whole: of all S · K draws.
        parts: of the K draws with each of S weights; their means are used where ``whole`` has a variance.
    """
    local = _average([part.epistemic for part in parts])
    epistemic = float64(whole.epistemic) - local
    epistemic = epistemic.masked_fill(epistemic <= _ROUNDING * float64(whole.epistemic), 0.0).float()
    split: dict[str, Any] = {"epistemic": epistemic, "aleatoric": whole.total - epistemic, "local": local.float()}
    variances = [part.variance for part in parts if part.variance is not None]
    if variances:
        means = float64(torch.stack([part.mean for part in parts]))
        spread = means.var(0) if len(parts) > 1 else torch.zeros_like(means[0])
        split |= {"epistemic_variance": spread.float(), "aleatoric_variance": _average(variances).float()}
    tasks = {name: nested(task, [part.tasks[name] for part in parts]) for name, task in whole.tasks.items()}
    return replace(whole, num_samples=len(parts), tasks=tasks, **split)


def _average(values: Sequence[Tensor]) -> Tensor:
    return float64(torch.stack(list(values))).mean(0)
