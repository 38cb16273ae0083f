"""What becomes of the given model, which models can be given, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, adapted_layers, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import FusionLoRA, LoRA, StochasticDown
from bayes_adapters.surgery.training_free import bayesianise
from tests.helpers import CONTEXT, bert, fill_B, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.surgery.training_free.parts import RANK, batch, draws, lora, make, products


def test_copy_leaves_the_model_and_shares_frozen_memory() -> None:
    model = lora()
    data, guide = batch(), Delta(model)
    modules = dict(model.named_modules())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {k: p.requires_grad for k, p in model.named_parameters()}
    before = predict(model, guide, data).probs
    new, posterior, _ = make(model)
    assert dict(model.named_modules()) == modules
    assert {k: p.requires_grad for k, p in model.named_parameters()} == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(predict(model, guide, data).probs, before)
    old_weight = model.backbone.get_submodule("encoder.layer.0.attention.self.query").base_layer.weight
    new_weight = new.backbone.get_submodule("encoder.layer.0.attention.self.query").base_layer.weight
    assert new_weight is not old_weight
    assert new_weight.data_ptr() == old_weight.data_ptr(), "the frozen weights take no second memory"
    assert {p.data_ptr() for p in new.head.parameters()}.isdisjoint(p.data_ptr() for p in model.head.parameters())
    probs = predict(new, posterior, data).probs
    new.double()  # casting one leaves the other
    assert old_weight.dtype is torch.float32
    with torch.no_grad():
        model.head.weight.zero_()
    assert not torch.equal(probs, predict(model, guide, data).probs)


@pytest.mark.parametrize("ranks", [None, {"encoder.layer.0.attention.self.query": 1}])
def test_without_copy_the_backbone_is_taken_over(ranks: dict[str, int] | None) -> None:
    model, other = lora(ranks=ranks), lora(ranks=ranks)
    backbone = model.backbone
    expected = make(other)
    new, guide, log = make(model, copy=False)
    assert new.backbone is backbone
    assert log.scale == expected[2].scale
    assert new.ranks == other.ranks
    assert all(layer.lora_A is None for layer in adapted_layers(backbone).values())
    assert torch.equal(predict(new, guide, batch()).probs, predict(*expected[:2], batch()).probs)


def test_adapters_in_half_precision_keep_their_mean() -> None:
    model = lora().bfloat16()
    new, guide, _ = make(model, widen=9)
    wanted = {
        path: layer.lora_B.float() @ layer.lora_A.float() for path, layer in adapted_layers(model.backbone).items()
    }
    for path, means in zip(new.layers, guide.get_buffer("mean-A-global"), strict=True):
        up = adapted_layers(new.backbone)[path].lora_B
        torch.testing.assert_close(up @ means, wanted[path], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy", [True, False])
def test_an_error_leaves_the_model_as_it_was(copy: bool) -> None:
    model = lora()
    guide, data = Delta(model), batch()
    before = predict(model, guide, data).probs
    layers = adapted_layers(model.backbone)
    flags = {k: p.requires_grad for k, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    with refuses(ConfigError, "low=", "tolerance=", "1e-12"):
        bayesianise(model, guide, data, relative_to="loss", tolerance=1e-12, widen=0, copy=copy, num_samples=2)
    assert adapted_layers(model.backbone) == layers
    assert {k: p.requires_grad for k, p in model.named_parameters()} == flags
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(predict(model, guide, data).probs, before)


def test_head_likelihood_and_options_are_carried_over() -> None:
    model = lora(likelihood=Categorical(3), pooling="cls", alpha=5.0, num_data=77)
    data = batch(classes=3)
    new, _, _ = bayesianise(model, Delta(model), data, tolerance=0.05, num_samples=4)
    wanted = {"rank": RANK, "alpha": 5.0, "dropout": 0.1, "pooling": "cls", "num_data": 77, "flipout": False}
    assert {k: new.config()[k] for k in wanted} == wanted
    assert new.layers == model.layers
    assert isinstance(new.likelihood, Categorical)
    assert torch.equal(new.head.weight, model.head.weight)
    assert not new.training


def test_pruned_layers() -> None:
    gone, short = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"
    model = lora(ranks={gone: 0, short: 1})
    new, guide, log = make(model)
    assert new.ranks == model.ranks
    assert not log.null_directions
    expected, found = predict(model, Delta(model), batch()), predict(new, guide, batch(), mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert predict(new, guide, batch()).epistemic.max() > 0


def test_the_means_of_a_trained_posterior() -> None:
    """BLoB-Mean + TFB: A is the posterior's mean."""
    torch.manual_seed(4)
    model = fill_B(StochasticDown(bert(), Bernoulli(), rank=RANK, num_data=50))
    guide = MeanField(model, init_scale=0.3)
    data = batch()
    new, posterior, _ = bayesianise(model, guide, data, tolerance=0.02, num_samples=4)  # type: ignore[arg-type]
    expected, found = predict(model, guide, data, mean_only=True), predict(new, posterior, data, mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert new.num_data == 50


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_lora_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    to_peft(tmp_path, lora())
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_peft(tmp_path / "theirs", bert(), Bernoulli(), head=False)
    with refuses(ConfigError, "fit", "model.head"):
        make(model)
    with torch.no_grad():
        model.head.weight.add_(0.1)  # as training does
    new, guide, _ = make(model)
    assert (products(model)[model.layers[0]] - draws(guide, 2)[model.layers[0]]).abs().max() > 0
    data = token_batch()
    with torch.no_grad():
        expected = theirs.eval()(**data.inputs).last_hidden_state
        found = model.backbone(**data.inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert predict(new, guide, data).epistemic.max() > 0


def test_refusals() -> None:
    model = lora()
    guide, data = Delta(model), batch()
    empty = LoRA(bert(), Bernoulli())
    regression = lora(likelihood=Gaussian())
    fusion = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT)

    def nothing() -> Iterator[Batch]:
        return iter(())

    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[BaseException], tuple[object, ...]]] = [
        ((empty, Delta(empty), data), {}, ConfigError, ("B is 0",)),
        ((regression, Delta(regression), data), {}, ConfigError, ("Gaussian",)),
        ((fusion, Delta(fusion), data), {}, ConfigError, ("LoRA", "StochasticDown", "FusionLoRA")),
        ((model, Delta(lora()), data), {}, ConfigError, ("LoRA", "Delta(model)")),
        ((model, guide, nothing()), {}, DataError, ("anchors",)),
        ((model, guide, data.without_targets()), {"labels": "targets"}, DataError, ("labels='targets'",)),
        ((model, guide, data), {"low": 0.1, "high": 0.1}, ConfigError, ("low", "high", 0.1)),
        ((model, guide, data), {"tolerance": 0.0}, ConfigError, ("tolerance", 0.0)),
        ((model, guide, data), {"tolerance": "5 %"}, ConfigError, ("tolerance", "'5 %'")),
        ((model, guide, data), {"iterations": -1}, ConfigError, ("iterations", 0, -1)),
        ((model, guide, data), {"num_samples": 0}, ConfigError, ("num_samples", 1, 0)),
        ((model, guide, data), {"criterion": "auc"}, ConfigError, ("criterion", "'auc'", "accuracy")),
        ((model, guide, data), {"labels": "truth"}, ConfigError, ("labels", "'truth'", "targets")),
    ]
    for arguments, options, error, facts in cases:
        with unchecked(), refuses(error, *facts):
            bayesianise(*arguments, **options)
