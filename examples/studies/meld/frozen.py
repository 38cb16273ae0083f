"""The control without adapters: logistic regression on the frozen backbone's pooled features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bayes_adapters import Batch
from bayes_adapters.errors import DataError
from bayes_adapters.heads.pooling import Pooling

PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""Weights of ½‖W‖²; the one with the lowest NLL on the dev utterances is taken."""


def features(backbone: nn.Module, data: Iterable[Batch], count: int) -> Tensor:
    """Return the mean over real tokens of the last hidden states, shape (count, d), in the data set's order."""
    out: Tensor | None = None
    with torch.no_grad():
        for batch in data:
            device = next(backbone.parameters()).device
            hidden = backbone(**{k: v.to(device) for k, v in batch.inputs.items()}).last_hidden_state
            pooled = Pooling.MEAN(hidden.cpu(), batch.token_mask)
            out = torch.zeros(count, pooled.shape[1]) if out is None else out
            out[batch.ids] = pooled
    if out is None:
        raise DataError("There is nothing to encode: the data holds no batch.")
    return out


def logistic_regression(x: Tensor, y: Tensor, classes: int, penalty: float) -> nn.Linear:
    """Minimise ``mean CE + penalty · ½‖W‖²`` by L-BFGS, from zero.

    Args:
        x: shape (N, d), float32, standardised.
        y: shape (N,), int64.
        classes: C.
        penalty: weight of the squared norm of W; the bias is free.
    """
    linear = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(linear(x), y) + 0.5 * penalty * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return linear


def frozen_probs(train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], classes: int, *x: Tensor) -> list[Tensor]:
    """Fit on ``train`` with each of :data:`PENALTIES`, choose on ``dev``; return the probabilities of each ``x``.

    Args:
        train: features (N, d) and class numbers (N,).
        dev: the same, to choose on.
        classes: C.
        *x: features to predict for, (M, d) each.
    """
    mean, std = train[0].mean(0), train[0].std(0).clamp_min(1e-6)

    def scaled(v: Tensor) -> Tensor:
        return (v - mean) / std

    fitted = [logistic_regression(scaled(train[0]), train[1], classes, p) for p in PENALTIES]
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(f(scaled(dev[0])), dev[1])) for f in fitted]
        best = fitted[losses.index(min(losses))]
        return [best(scaled(v)).softmax(-1) for v in x]
