"""Logistic regression on frozen features."""

from __future__ import annotations

import torch
from torch import nn

from examples.studies.meld.frozen import frozen_probs, logistic_regression


def test_logistic_regression_finds_the_optimum_and_dev_chooses_the_penalty() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=rng), torch.randint(0, 3, (80,), generator=rng)
    linear = logistic_regression(x, y, 3, 0.1)
    loss = nn.functional.cross_entropy(linear(x), y) + 0.05 * linear.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(linear.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    (flat,) = frozen_probs((x, y), (x[:40] * 0, torch.randint(0, 3, (40,), generator=rng)), 3, x)
    assert flat.shape == (80, 3)
    # Labels are noise: held-out data want the strongest penalty, the training data themselves the weakest.
    held_out = (torch.randn(200, 5, generator=rng), torch.randint(0, 3, (200,), generator=rng))
    spread = [frozen_probs((x, y), dev, 3, x)[0].std() for dev in (held_out, (x, y))]
    assert spread[0] < spread[1]
