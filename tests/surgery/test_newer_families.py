"""Folding, merging and exporting what has noise per example, weights under a hierarchy, or inducing weights."""

from __future__ import annotations

import pytest
import torch

from bayes_adapters import Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, InducingWeights, InputNoise
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.models import StochasticCore
from bayes_adapters.models.balora import BaLoRA
from bayes_adapters.priors import GlobalWeights
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.folding import fold
from bayes_adapters.surgery.merging import merge, merge_intra, merged
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses

BATCH = token_batch(4).without("audio")


def hierarchical() -> tuple[StochasticCore, Contextual]:
    """Cores per token under weights of the data set: ``GlobalWeights``."""
    model = core_model("sequence", prior=GlobalWeights(0.2, 0.1))
    return model, Contextual(model)


def noisy() -> tuple[BaLoRA, InputNoise]:
    """Noise on A, anew for every example."""
    model = fill_B(BaLoRA(bert(), Bernoulli(), rank=2, num_data=4))
    return model, InputNoise(model)


def inducing() -> tuple[StochasticCore, InducingWeights]:
    model = core_model("global", rank=3, num_data=4)
    guide = InducingWeights(model, inducing=(2, 2))
    with torch.no_grad():
        for value in guide.loc.values():
            value.normal_()
    return model, guide


@pytest.mark.parametrize("make", [hierarchical, noisy])
def test_what_is_drawn_for_every_example_is_no_weight(make: type) -> None:
    model, guide = make()
    with refuses(ConfigError, model.sites[0].name, "drawn anew for each input"):
        to_lora(model, guide, bert())
    for use in (merge, merge_intra):
        with refuses(ConfigError, "random"):
            use(model.backbone if use is merge else model)
    with refuses(ConfigError, "random"), merged(model):
        pass
    predict(model, guide, BATCH, num_samples=2)  # as it was


def test_inducing_weights_are_exported_as_their_mean_or_a_draw() -> None:
    model, guide = inducing()
    with refuses(ConfigError, "random"):
        merge(model.backbone)
    mean = to_lora(model, guide, bert())
    torch.testing.assert_close(
        predict(mean, Delta(mean), BATCH).mean, predict(model, guide, BATCH, mean_only=True).mean, rtol=1e-4, atol=1e-5
    )
    drawn = to_lora(model, guide, bert(), draw=1)
    each = predict(model, guide, BATCH, num_samples=3, return_samples=True).samples
    torch.testing.assert_close(predict(drawn, Delta(drawn), BATCH).mean, each[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(each[1], each[0])
    assert set(weight_draw(model, guide, 1)) == {"core.global"}
    whole = merge(drawn.backbone)
    inputs = BATCH.inputs
    with torch.no_grad():
        one, two = (net(**inputs).last_hidden_state for net in (whole, drawn.backbone))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [hierarchical, noisy, inducing])
def test_only_a_wander_folds(make: type) -> None:
    model, guide = make()
    with refuses(ConfigError, type(model).__name__, "Wander"):
        fold(model, guide)
