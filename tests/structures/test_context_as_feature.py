"""The context as a feature of the head and as what conditions the cores; and the controls without a posterior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Batch, Bernoulli, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.models import FusionCore, FusionLoRA, LoRA
from bayes_adapters.reliability import FrameDensity, Reliability
from bayes_adapters.systems import SYSTEMS, build, start
from tests.helpers import CONTEXT, WIDTH, bert, core_model, fill_B, logits, moments, token_batch
from tests.refusals import refuses


def fused(**options: Any) -> FusionCore:
    model = FusionCore(bert(), Bernoulli(), context_dim=CONTEXT, rank=3, fusion_width=5, **options)
    with torch.no_grad():
        model.null.normal_()
    fill_B(model)
    return model


def by_hand(model: Any, batch: Batch, hidden: Tensor) -> Tensor:
    """``W₂ ReLU(W₁ [mean of real tokens ; mean of real frames, or the null] + b₁) + b₂``, row by row."""
    rows = []
    frames = batch.context["audio"]
    for i, real in enumerate(batch.inputs["attention_mask"].bool()):
        heard = frames.values[i][frames.mask[i]]
        context = heard.mean(0) if len(heard) else model.null
        feature = torch.cat([hidden[i][real].mean(0), context])
        p = dict(model.head.named_parameters())
        inner = torch.relu(p["0.weight"] @ feature + p["0.bias"])
        rows.append(p["2.weight"] @ inner + p["2.bias"])
    return torch.stack(rows)[:, 0]


def test_the_head_sees_the_real_frames_of_its_own_example_or_the_null() -> None:
    model, batch = fused(), token_batch()
    for layer in model.installed.values():
        layer.lora_B.data.zero_()  # the cores change nothing, so the hidden states are the frozen ones
    found = logits(CrossAttention(model, context_dim=CONTEXT, dim=4), batch)
    with model.adapters_disabled() as plain, torch.no_grad():
        hidden = plain(**batch.inputs).last_hidden_state
    torch.testing.assert_close(found, by_hand(model, batch, hidden).detach(), rtol=1e-5, atol=1e-6)


def test_with_cores_at_the_identity_it_is_late_fusion() -> None:
    model, late = fused(), FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, rank=3, fusion_width=5)
    tensors = {k: v for k, v in model.state_dict().items() if k in late.state_dict()}
    late.load_state_dict(tensors, strict=False)
    guide = Delta(model)
    with torch.no_grad():
        for value in guide.loc.values():
            value.copy_(torch.eye(3))
    batch = token_batch()
    torch.testing.assert_close(logits(guide, batch), logits(Delta(late), batch), rtol=1e-5, atol=1e-6)


def test_the_kl_is_the_cores_alone() -> None:
    """The classifier and the null are points: the KL of the same guide on the same cores is StochasticCore's."""
    batch, model = token_batch(), fused()
    guides = [CrossAttention(m, context_dim=CONTEXT, dim=4) for m in (core_model(), model)]
    guides[1].load_state_dict(guides[0].state_dict())
    for layer, other in zip(model.installed.values(), guides[0].model.installed.values(), strict=True):
        layer.load_state_dict(other.state_dict())
    found = []
    for guide in guides:
        torch.manual_seed(5)
        found.append(ELBO(guide.model, guide).terms(batch).kl)
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0].detach()) > 1.0


def test_any_head_serves_and_is_as_wide_as_text_and_context() -> None:
    model = FusionCore(
        bert(), Bernoulli(), context_dim=CONTEXT, rank=2, head=VariationalLastLayer("diagonal"), num_data=50
    )
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    # and a constant 1, for the bias
    assert {site.shape[-1] for site in model.head_sites if len(site.event) == 2} == {WIDTH + CONTEXT + 1}
    assert predict(model, guide, token_batch(), num_samples=2).probs.shape == (5,)
    with refuses(ConfigError, "fusion_width=4", "head="):
        FusionCore(bert(), Bernoulli(), context_dim=CONTEXT, fusion_width=4, head=VariationalLastLayer())


def test_both_read_one_modality_of_any_name(tmp_path: Path) -> None:
    plain = token_batch()
    batch = replace(plain, context={"lidar": plain.context["audio"], "other": plain.context["audio"]})
    options: dict[str, Any] = {"context_dim": CONTEXT, "modality": "lidar", "fusion_width": 5, "dim": 4, "rank": 2}
    model, guide = build("caliber-x-fusion", bert(), Bernoulli(), **options)
    assert model.reads == guide.reads == {"lidar"}
    with torch.no_grad():
        fill_B(model)
        model.null.normal_()
    save(tmp_path / "saved", model, guide)
    before = predict(model, guide, batch, num_samples=3)
    again = predict(*load(tmp_path / "saved", bert()), batch, num_samples=3)
    assert torch.equal(before.probs, again.probs)
    assert bool((before.epistemic > 0).all())
    absent = predict(model, guide, replace(batch, context={}), num_samples=3)
    rows = ~batch.context["lidar"].present
    torch.testing.assert_close(absent.probs[rows], before.probs[rows])
    assert not torch.isclose(absent.probs[~rows], before.probs[~rows]).any()


@pytest.mark.parametrize("context", [True, False])
def test_the_control_is_the_same_network_at_its_mean(context: bool) -> None:
    """Weights copied from the Gaussian guide's μ: the core is that guide's mean, and nothing is drawn."""
    options: dict[str, Any] = {"context_dim": CONTEXT, "dim": 4} if context else {}
    family = CrossAttention if context else Contextual
    batch, model = token_batch(), core_model()
    gaussian, point = family(model, **options), family(model, scale=None, **options)
    for name, value in point.state_dict().items():
        value.copy_(gaussian.state_dict()[name][: len(value)])
    expected = {name: mean for name, (mean, _) in moments(gaussian, batch).items()}
    draws = point(batch)
    for site in model.sites:
        torch.testing.assert_close(draws[site.name], expected[site.name])
    answer = predict(model, point, batch, num_samples=7)
    torch.testing.assert_close(answer.probs, predict(model, gaussian, batch, mean_only=True).probs)
    assert point.deterministic
    assert not gaussian.deterministic
    assert torch.equal(answer.epistemic, torch.zeros(5))
    assert point.config()["scale"] is None


def test_without_a_kl_the_loss_is_the_negative_log_likelihood_at_the_mean() -> None:
    batch, model = token_batch(), core_model()
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, scale=None)
    loss = ELBO(model, guide, kl_weight=0.0)(batch)
    nll = -predict(model, guide, batch).log_density.mean()
    torch.testing.assert_close(loss, nll)
    loss.backward()
    assert all(bool(head.net[2].weight.grad.abs().sum() > 0) for head in guide.heads.values())


def test_the_controls_are_as_large_as_what_they_control() -> None:
    def size(name: str) -> int:
        model, guide = build(name, bert(), Bernoulli(), context_dim=CONTEXT)
        return sum(p.numel() for p in [*model.trainable_parameters().values(), *guide.parameters()])

    sites, r, width = 4, 8, 64
    for whole, control in (("caliber-x", "cross-attention"), ("caliber-x-fusion", "cross-attention-fusion")):
        assert size(whole) - size(control) == sites * r**2 * (width + 1)
        assert SYSTEMS[control].training.kl_weight == 0.0
        assert "control" in SYSTEMS[control].source


def test_a_control_starts_from_a_trained_lora() -> None:
    lora, batch = LoRA(bert(), Bernoulli(), rank=2), token_batch()
    fill_B(lora)
    before = predict(lora, Delta(lora), batch).probs
    model, guide = start("cross-attention", lora, context_dim=CONTEXT)
    torch.testing.assert_close(predict(model, guide, batch).probs, before, rtol=1e-5, atol=1e-6)


def test_a_point_is_not_widened() -> None:
    density = Reliability(FrameDensity(CONTEXT, 1))
    with refuses(ConfigError, "scale=None", "reliability="):
        CrossAttention(core_model(), context_dim=CONTEXT, dim=4, scale=None, reliability=density)
