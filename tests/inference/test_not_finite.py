"""Numbers that are NaN or infinite are refused by name: an entropy made of them would look like certainty."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from bayes_adapters import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Tagging, predict
from bayes_adapters.errors import NonFiniteError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses

LIKELIHOODS: dict[str, Any] = {
    "bernoulli": Bernoulli,
    "categorical": lambda: Categorical(3),
    "gaussian": Gaussian,
    "heteroscedastic": HeteroscedasticGaussian,
    "tagging": lambda: Tagging(3),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_a_head_that_is_not_finite(name: str, value: float) -> None:
    model = LoRA(bert(), LIKELIHOODS[name]())
    guide, batch = Delta(model), token_batch().without_targets()
    assert predict(model, guide, batch).total.isfinite().all()
    with torch.no_grad():
        model.head.bias[0] = value
    with refuses(NonFiniteError, "head.bias", "[0, 1, 2, 3, 4]"):
        predict(model, guide, batch)


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_one_row_is_named(name: str) -> None:
    """One token whose embedding is too large for float32 after the layers; the other rows do not hold it."""
    model = core_model(likelihood=LIKELIHOODS[name]())
    batch = token_batch().without_targets()
    batch.inputs["input_ids"][3, 0] = 39
    batch.inputs["input_ids"][batch.inputs["input_ids"] == 39] = 38
    batch.inputs["input_ids"][3, 0] = 39
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight[39] = float("inf")
    with refuses(NonFiniteError, "[3]"):
        predict(model, MeanField(model), batch, num_samples=3)


@pytest.mark.parametrize("where", ["likelihood", "guide"])
def test_parameters_of_likelihood_and_guide(where: str) -> None:
    model = core_model("global", likelihood=Gaussian())
    guide = MeanField(model)
    with torch.no_grad():
        (model.likelihood.log_scale if where == "likelihood" else guide.loc["core-global"]).fill_(float("nan"))
    with refuses(NonFiniteError, "likelihood.log_scale" if where == "likelihood" else "[0, 1, 2, 3, 4]"):
        predict(model, guide, token_batch())


def test_large_finite_numbers_pass() -> None:
    """The sum of the outputs overflows, no output does."""
    model = LoRA(bert(), Categorical(3))
    with torch.no_grad():
        model.head.bias[:2] = 3e38
    found = predict(model, Delta(model), token_batch().without_targets())
    assert found.probs[:, :2].tolist() == [[0.5, 0.5]] * 5


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_a_hand_made_loop_that_diverges(name: str) -> None:
    """Torch's distributions ended it with a ValueError of a few thousand numbers."""
    model = core_model("global", likelihood=LIKELIHOODS[name]())
    guide = MeanField(model)
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]) if name == "categorical" else torch.zeros(5))
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e30}), Trace_ELBO())
    with refuses(NonFiniteError, "'backbone.encoder.layer.0.attention.self.query.lora_A'", "diverged") as raised:
        for _ in range(5):
            svi.step(batch)
    assert len(str(raised[0])) < 1000
    assert isinstance(raised[0].__cause__, ValueError)
