"""Export as a plain LoRA whose predictions are the model's at the posterior mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, adapted_layers, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import DiagonalCore, FusionLoRA, LoRA, StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.pruning import prune
from tests.helpers import CONTEXT, bert, fill_B, token_batch
from tests.rank_wise.parts import LAYERS
from tests.refusals import refuses
from tests.surgery.pruning.parts import key, pair


def exported(model: Any, guide: Any, **options: Any) -> Any:
    """The plain LoRA of a model, after checking that its predictions are the model's at the posterior mean."""
    lora = to_lora(model, guide, bert(), **options)
    assert type(lora) is LoRA
    batch = token_batch()
    expected = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, expected, rtol=0, atol=1e-6)
    with model.adapters_disabled(), torch.no_grad():
        assert (predict(model, guide, batch, mean_only=True).mean - expected).abs().max() > 1e-3, "the adapter matters"
    return lora


def test_export_of_a_pruned_adapter(tmp_path: Path) -> None:
    model, guide = pair(weak=((0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (3, 2)))
    prune(model, guide, threshold=2.0)
    lora = exported(model, guide)
    assert lora.ranks == {LAYERS[0]: 2, LAYERS[1]: 2, LAYERS[3]: 2}, "a layer without ranks is left out"
    assert {layer.scaling for layer in adapted_layers(lora.backbone).values()} == {16.0 / 3}
    assert all(p.requires_grad for p in lora.trainable_parameters().values())
    save(tmp_path, lora, Delta(lora))
    again, delta = load(tmp_path, bert())
    assert torch.equal(predict(again, delta, token_batch()).mean, predict(lora, Delta(lora), token_batch()).mean)


def test_ranks_that_are_exactly_zero_can_be_left_out() -> None:
    model, guide = pair(weak=())
    with torch.no_grad():
        guide.loc[key("A", 1)][0, 0] = 0.0
        guide.loc[key("B", 3)][0, :, 1] = 0.0
    assert set(exported(model, guide).ranks.values()) == {3}
    assert list(exported(model, guide, drop_zero=True).ranks.values()) == [3, 2, 3, 2]
    assert model.ranks == dict.fromkeys(LAYERS, 3), "the model itself is left as it is"


@pytest.mark.parametrize("build", [
    lambda: fill_B(StochasticDown(bert(), Bernoulli(), rank=3, num_data=50)),
    lambda: fill_B(DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)),
    lambda: fill_B(StochasticCore(bert(), Bernoulli(), rank=3, num_data=50, granularity="global")),
    lambda: StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50),
])  # fmt: skip
def test_export_of_every_model_with_random_weights(build: Any) -> None:
    model = build()
    guide = MeanField(model)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.normal_()
    exported(model, guide)


@pytest.mark.parametrize(
    ("build", "make_guide", "facts"),
    [
        (
            lambda: StochasticCore(bert(), Bernoulli(), rank=3),
            Contextual,
            ("'core.encoder.layer.0.attention.self.query'", "A, B, or a global core"),
        ),
        (lambda: FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT), Delta, ("FusionLoRA", "head")),
    ],
)
def test_what_is_no_plain_lora_is_refused(build: Any, make_guide: Any, facts: tuple[object, ...]) -> None:
    model = build()
    with refuses(ConfigError, *facts):
        to_lora(model, make_guide(model), bert())


def test_export_refuses_other_backbones_and_empty_adapters() -> None:
    model, guide = pair()
    with refuses(ConfigError, "BertModel"):
        to_lora(model, guide, bert(seed=1))
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        to_lora(model, guide, model.backbone)
    prune(model, guide, threshold=-100.0, allow_empty=True)
    with refuses(ConfigError, "model.head"):
        to_lora(model, guide, bert())
