"""BLoB: a random A, its KL, its parametrisation and flipout."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Batch, evaluating
from bayes_adapters.adapters.forward_pass import ForwardPass, running
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.reparametrisation import Flipout
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.guides import MeanField
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.helpers import WIDTH, token_batch
from tests.weight_sites.parts import down


def outputs(guide: Any, batch: Batch) -> torch.Tensor:
    """Logits of one pass."""
    guide(batch)
    return guide.trace.nodes["obs"]["fn"].logits.detach()


def test_kl_of_A_counts_once_per_data_set() -> None:
    model, batch = down(), token_batch()
    guide = MeanField(model, init_scale=0.25)
    with torch.no_grad():
        guide.loc["A-global"].fill_(0.1)
    terms = ELBO(model, guide).terms(batch)
    assert terms.kl.item() == pytest.approx(0.18310645 * 4 * 3 * WIDTH / 50, rel=1e-5)


def test_root_parameter_and_interval_of_blob() -> None:
    guide = MeanField(down(), init_scale=(0.00125, 0.0025), parameter="root")
    rho = guide.rho["A-global"]
    assert rho.min() >= math.sqrt(0.00125)
    assert rho.max() <= 0.05
    assert rho.mean().item() == pytest.approx((math.sqrt(0.00125) + 0.05) / 2, rel=0.05)
    assert guide.config() == {"init_scale": (0.00125, 0.0025), "parameter": "root", "positive_mean": False}
    bound = 1 / math.sqrt(WIDTH)
    assert 0.9 * bound < guide.loc["A-global"].abs().max() <= bound, "Kaiming-uniform, as plain LoRA"


@pytest.mark.parametrize("flipout", [True, False])
def test_the_posterior_mean_is_one_pass_without_noise(flipout: bool) -> None:
    model, batch = down(flipout=flipout), token_batch()
    guide = MeanField(model, init_scale=0.5)
    model.train()
    with torch.no_grad(), PosteriorMean():
        assert torch.equal(outputs(guide, batch), outputs(guide, batch))


def _flipped(rows: int, tokens: int, draws: int) -> torch.Tensor:
    """z = A x of ``rows`` examples of ``tokens`` equal tokens: shape (draws, rows, tokens, 4)."""
    torch.manual_seed(0)
    site = Site("A.l", Part.A, ("l",), (4, 6), Granularity.GLOBAL)
    layer = AdaptedLinear(nn.Linear(6, 4, bias=False), 4, 4.0, path="l", sites=[site]).train()
    nn.init.zeros_(layer.base_layer.weight)  # type: ignore[arg-type]
    assert layer.lora_B is not None
    nn.init.eye_(layer.lora_B)
    mean, scale = torch.randn(4, 6), torch.rand(4, 6) + 0.5
    batch = Batch({"input_ids": torch.zeros(rows, tokens, dtype=torch.long)})
    x = torch.linspace(-1, 1, 6).expand(rows, tokens, 6)
    found = []
    for _ in range(draws):
        weight = Flipout(mean + scale * torch.randn(4, 6), mean, rows)
        state = ForwardPass(Rows(batch), Prior(zero_normal(), [site]), {(Part.A, "l"): weight}, 1)
        with running(state), torch.no_grad():
            found.append(layer(x))
    expected = scale.square() @ x[0, 0].square()
    return torch.stack(found) / expected.sqrt()


def test_flipout_signs_are_per_example_and_not_per_token() -> None:
    """The mean over 64 equal tokens varies as one token does; signs per token would make it 64 times smaller."""
    z = _flipped(rows=2, tokens=64, draws=3000)
    torch.testing.assert_close(z[:, :, 0], z[:, :, 63])  # all tokens of an example see one function
    pooled = z.mean(2)
    assert pooled.var(0).mean().item() == pytest.approx(1.0, rel=0.05), "the analytic variance"
    left, right = (pooled[:, i] - pooled[:, i].mean(0) for i in (0, 1))
    assert (left * right).mean().abs() < 0.05, "examples are decorrelated"


@pytest.mark.parametrize("options", [{}, {"flipout": True}, {"flipout": False}])
def test_flipout_is_on_unless_it_is_declined(options: dict[str, Any]) -> None:
    """With it, copies of one example differ in training."""
    model = down(**options).train()
    assert model.config()["flipout"] is options.get("flipout", True)
    found = outputs(MeanField(model, init_scale=1.0), token_batch()[torch.tensor([1, 1, 1, 1])])
    assert (found.std() > 1e-3) == options.get("flipout", True)


def test_flipout_is_off_at_prediction_and_without_a_guide() -> None:
    model, batch = down(), token_batch()
    guide = MeanField(model, init_scale=0.5)
    with torch.no_grad(), evaluating(model):
        guide(batch)
        value = guide.trace.nodes["A.global"]["value"]
        expected = guide.trace.nodes["obs"]["fn"].logits
        torch.testing.assert_close(
            pyro.poutine.condition(model, {"A.global": value})(batch)[:, 0], expected, rtol=1e-5, atol=1e-6
        )
    model.train()
    with torch.no_grad():
        again = pyro.poutine.condition(model, {"A.global": value})(batch)[:, 0]
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-6)
