"""What exporting, training-free noise and files keep of a head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bayes_adapters import Bernoulli, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads import TwoLayerHead
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, token_batch


def test_exporting_keeps_another_head() -> None:
    model = fill_B(LoRA(bert(), Categorical(3), head=TwoLayerHead(4, pooling="cls")))
    model.head.get_parameter("0.bias").requires_grad_(False)
    lora = to_lora(model, Delta(model), bert())
    assert lora.head.config() == model.head.config()
    assert [p.requires_grad for p in lora.head.parameters()] == [True, False, True, True]
    found, expected = (predict(m, Delta(m), token_batch().without_targets()).probs for m in (lora, model))
    assert torch.equal(found, expected)


def test_training_free_keeps_another_head() -> None:
    model = fill_B(LoRA(bert(), Categorical(3), head=TwoLayerHead(4, pooling="cls")))
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))
    new, posterior, _ = bayesianise(model, Delta(model), batch, relative_to="loss", iterations=2, num_samples=2)
    assert new.head.config() == model.head.config()
    torch.testing.assert_close(
        predict(new, posterior, batch, mean_only=True).mean, predict(model, Delta(model), batch).mean
    )


def test_what_was_frozen_by_hand_is_frozen_after_loading(tmp_path: Path) -> None:
    model = StochasticCore(bert(), Gaussian(), granularity="token", rank=2)
    guide = MeanField(model)
    model.head.requires_grad_(False)
    model.likelihood.log_scale.requires_grad_(False)
    first = next(iter(dict(guide.named_parameters())))
    guide.get_parameter(first).requires_grad_(False)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    for old, new in ((model, again), (guide, guide_again)):
        flags = {name: p.requires_grad for name, p in old.named_parameters()}
        assert flags == {name: p.requires_grad for name, p in new.named_parameters()}
    fit(again, guide_again, token_batch(targets=torch.randn(5)), epochs=1, progress=False)
    assert torch.equal(again.head.weight, model.head.weight)


def test_an_altered_list_of_frozen_tensors_is_refused(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli())
    model.head.requires_grad_(False)
    save(tmp_path, model, Delta(model))
    path = tmp_path / "adapter.json"
    path.write_text(path.read_text().replace('"model.head.weight",\n  "model.head.bias"', '"model.head.wait"'))
    with pytest.raises(AdapterFileError):
        load(tmp_path, bert())
