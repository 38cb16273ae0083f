"""Laplace approximations of a plain LoRA: of its factors, of a core, with its head, or of the head alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.heads import TwoLayerHead
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from bayes_adapters.surgery.random_weights import random_weights
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum", "ignore:The best prior precision")


def lora(likelihood: Any = None, **options: Any) -> tuple[Any, Delta, Batch]:
    model = fill_B(LoRA(bert(), likelihood or Categorical(3), **{"rank": 2, **options}))
    batch = token_batch(6)
    return model, Delta(model), Batch(batch.inputs, torch.arange(6) % 3)


@pytest.mark.parametrize("weights", ["factors", "core"])
@pytest.mark.parametrize("head", [True, False])
def test_the_new_model_gives_the_old_ones_answers(weights: str, head: bool) -> None:
    model, point, batch = lora()
    before = predict(model, point, batch).mean
    new, values = random_weights(model, point, weights, head=head)
    draws = {name: value[None] for name, value in values.items()}
    torch.testing.assert_close(predict(new, draws, batch).mean, before)
    assert ("head.weight" in values) is head
    assert torch.equal(predict(model, point, batch).mean, before)
    name, frozen = next(iter(bert().named_parameters()))
    ours, theirs = (dict(m.backbone.named_parameters())[name] for m in (new, model))
    assert ours.data_ptr() == theirs.data_ptr(), f"{tuple(frozen.shape)} numbers are there twice"


@pytest.mark.parametrize("weights", ["factors", "core"])
def test_pruned_layers(weights: str) -> None:
    gone, short = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"
    model, point, batch = lora(ranks={gone: 0, short: 1})
    new, guide, log = laplace(model, point, batch, weights=weights, structure="block")
    assert new.ranks == model.ranks
    assert log.size == (160 if weights == "factors" else 9)
    torch.testing.assert_close(predict(new, guide, batch, mean_only=True).mean, predict(model, point, batch).mean)


@pytest.mark.parametrize("options", [{}, {"weights": "core", "head": True}, {"structure": "diagonal", "head": True}])
def test_a_lora_gets_a_posterior_that_is_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    model, point, batch = lora()
    new, guide, log = laplace(model, point, batch, **options)
    assert new.num_data == log.num_data == 6
    answer = predict(new, guide, batch, linearised=True)
    assert answer.epistemic.min() > 0
    torch.testing.assert_close(predict(new, guide, batch, mean_only=True).mean, predict(model, point, batch).mean)
    save(tmp_path / "adapter", new, guide, task=log.to_json())
    again, guide_again = load(tmp_path / "adapter", bert())
    assert torch.equal(predict(again, guide_again, batch, linearised=True).mean, answer.mean)


@pytest.mark.parametrize("made_by", [laplace, last_layer_laplace])
def test_a_number_of_examples_is_never_replaced_silently(made_by: Any) -> None:
    with refuses(ConfigError, "num_data", 0):
        made_by(*lora(), num_data=0)


def last_layer_precision(model: Any, point: Any, batch: Batch) -> torch.Tensor:
    """I + Σ_n (diag(p) − p pᵀ) ⊗ φ φᵀ for classes, from the features that a hook sees."""
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    probs = predict(model, point, batch, mean_only=True).mean.double()
    hook.remove()
    phi = torch.cat([seen[0], torch.ones(batch.size, 1)], 1).double()
    bent = [torch.kron(p.diag() - torch.outer(p, p), torch.outer(x, x)) for p, x in zip(probs, phi, strict=True)]
    return torch.eye(bent[0].shape[0]) + torch.stack(bent).sum(0)


def test_the_last_layers_posterior_is_its_hessians() -> None:
    model, point, batch = lora()
    precision = last_layer_precision(model, point, batch)
    new, guide, log = last_layer_laplace(model, point, batch, prior_precision=1.0)
    q = guide.head_posterior.gaussian()
    torch.testing.assert_close(q.covariance_matrix.double(), torch.linalg.inv(precision), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(predict(new, guide, batch, mean_only=True).mean, predict(model, point, batch).mean)
    assert log.log_evidence == pytest.approx(
        log.log_likelihood - 0.5 * float(q.loc.square().sum()) - 0.5 * float(torch.linalg.slogdet(precision)[1]),
        rel=1e-4,
    )
    _, blocks, _ = last_layer_laplace(model, point, [batch[:4], batch[4:]], structure="block", prior_precision=1.0)
    width = len(precision) // 3
    parts = torch.block_diag(*[precision[i : i + width, i : i + width] for i in (0, width, 2 * width)])
    found = blocks.head_posterior.gaussian().covariance_matrix.double()
    torch.testing.assert_close(found, torch.linalg.inv(parts), rtol=1e-3, atol=1e-5)
    same = [predict(new, guide, batch, linearised=lin, return_samples=True).samples for lin in (True, False)]
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-5)


def test_a_last_layer_regression_is_exact() -> None:
    model, point, batch = lora(Gaussian(-0.3))
    batch = Batch(batch.inputs, torch.randn(6))
    new, guide, _ = last_layer_laplace(model, point, batch, prior_precision=2.0)
    answer, point_answer = predict(new, guide, batch, num_samples=4000), predict(model, point, batch)
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(model, point, batch)
    hook.remove()
    phi, noise = torch.cat([seen[0], torch.ones(6, 1)], 1).double(), torch.tensor(-0.6).exp().double()
    covariance = torch.linalg.inv(2 * torch.eye(phi.shape[1]) + phi.T @ phi / noise)
    variance = (phi @ covariance * phi).sum(1) + noise
    torch.testing.assert_close(answer.variance.double(), variance, rtol=0.05, atol=0)
    torch.testing.assert_close(answer.mean, point_answer.mean, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["contextual", "mean_field"])
def test_the_last_layer_stands_beside_any_guide(kind: str, tmp_path: Path) -> None:
    model = core_model("token" if kind == "contextual" else "global", rank=2, num_data=5)
    trained = Contextual(model) if kind == "contextual" else MeanField(model)
    batch = token_batch()
    new, guide, _ = last_layer_laplace(model, trained, batch)
    assert type(guide) is type(trained)
    torch.testing.assert_close(
        predict(new, guide, batch, mean_only=True).mean, predict(model, trained, batch, mean_only=True).mean
    )
    assert predict(new, guide, batch).epistemic.sum() > predict(model, trained, batch).epistemic.sum()
    save(tmp_path / "adapter", new, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(new, guide, batch).mean)


def test_what_has_no_such_weights() -> None:
    model, point, batch = lora()
    with refuses(ConfigError, "LoRA", "factors"):
        laplace(model, point, batch, weights="sites")
    with refuses(ConfigError, "head", "JointLinear"):
        cores = core_model("global")
        laplace(cores, Delta(cores), token_batch(), weights="sites", head=True)
    wide = LoRA(bert(), Categorical(3), rank=2, head=TwoLayerHead(4))
    for call in (
        lambda: laplace(wide, Delta(wide), batch, head=True),
        lambda: last_layer_laplace(wide, Delta(wide), batch),
    ):
        with refuses(ConfigError, "TwoLayerHead", "LinearHead"):
            call()


def test_blocks_are_sites_and_layers() -> None:
    model, point, batch = lora()
    options: dict[str, Any] = {"weights": "core", "head": True, "prior_precision": 1.0}
    found = [laplace(model, point, batch, structure=s, **options)[1].joint() for s in ("full", "block")]
    full, block = (torch.linalg.inv(q.covariance_matrix.double()) for q in found)
    ends = [0, 4, 8, 12, 16, 64, 67]  # four cores, the head's weight and its bias
    parts = [full[a:b, a:b] for a, b in pairwise(ends)]
    torch.testing.assert_close(block, torch.block_diag(*parts), rtol=1e-3, atol=1e-3)
