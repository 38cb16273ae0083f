"""The KL of Φ counts where Φ has an effect: not in the encoder of a modality that an example lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Batch, Bernoulli
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.models import CoLA
from tests.helpers import bert, token_batch, vit


@pytest.mark.parametrize("mode", list(KLMode))
def test_missing_for_every_example_costs_what_missing_for_the_batch_costs(mode: KLMode) -> None:
    model = CoLA(nn.ModuleDict({"text": bert(), "image": vit()}), Bernoulli(), rank=2)
    elbo = ELBO(model, Hypernetwork(model, gamma=4, scale="softplus"), kl_mode=mode)
    text = token_batch(3)
    left_out = Batch({f"text.{name}": value for name, value in text.inputs.items()}, text.targets)
    given = {"image.pixel_values": torch.randn(3, 3, 16, 16), "image.present": torch.zeros(3, dtype=torch.bool)}
    absent = replace(left_out, inputs={**left_out.inputs, **given})
    torch.testing.assert_close(elbo.terms(absent).kl, elbo.terms(left_out).kl)


def test_scales_are_those_of_cores_that_have_a_kl() -> None:
    """Of the image only row 0 is there, and Φ in its encoder depends on row 0's text alone."""
    model = CoLA(nn.ModuleDict({"text": bert(), "image": vit()}), Bernoulli(), rank=2)
    elbo = ELBO(model, Hypernetwork(model, gamma=4, scale="softplus"))
    inputs = {f"text.{name}": value for name, value in token_batch(3).inputs.items()}
    inputs |= {"image.pixel_values": torch.randn(3, 3, 16, 16), "image.present": torch.tensor([1, 0, 0])}
    batch = Batch(inputs, torch.ones(3))
    site = next(name for name in elbo.terms(batch, with_scales=True).scales if name.startswith("cross.image"))
    one, all_three = (elbo.terms(given, with_scales=True).scales for given in (batch[:1], batch))
    assert all_three[site] == pytest.approx(one[site], rel=1e-4)
    none = replace(batch, inputs={**inputs, "image.present": torch.zeros(3)})
    assert site not in elbo.terms(none, with_scales=True).scales
