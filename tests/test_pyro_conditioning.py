"""Cores that are given: conditioning, replay, and the log joint."""

from __future__ import annotations

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from bayes_adapters import AdapterModel, adapted_layers
from bayes_adapters.guides import Contextual, CrossAttention
from tests.helpers import CONTEXT, bert, core_model, token_batch


def _bare(model: AdapterModel, core: Tensor) -> Tensor:
    """Outputs with every global core fixed to ``core``, from merged weights W₀ + s·B E A."""
    batch = token_batch()
    net = bert()
    with torch.no_grad():
        for path, layer in adapted_layers(model.backbone).items():
            net.get_submodule(path).weight += layer.scaling * layer.lora_B @ core @ layer.lora_A
        hidden = net(**batch.inputs).last_hidden_state
        mask = batch.inputs["attention_mask"][..., None]
        return model.head((hidden * mask).sum(1) / mask.sum(1))


def test_conditioning_a_core_sets_the_merged_weight() -> None:
    model, batch = core_model("global"), token_batch()
    for core in (torch.randn(3, 3), torch.zeros(3, 3), torch.eye(3)):
        data = {"core.global": core.expand(4, 3, 3)}
        with torch.no_grad():
            found = poutine.condition(model, data=data)(batch)
        torch.testing.assert_close(found, _bare(model, core), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_conditioning_local_cores_sets_the_merged_weight(granularity: str) -> None:
    model, batch = core_model(granularity), token_batch()
    core = torch.randn(3, 3)
    length = 7 if granularity == "token" else 1
    data = {s.name: core.expand(5, length, 3, 3) for s in model.sites}
    with torch.no_grad():
        found = poutine.condition(model, data=data)(batch)
    torch.testing.assert_close(found, _bare(model, core), rtol=1e-4, atol=1e-5)


def test_a_conditioned_core_keeps_its_value_in_model_and_guide() -> None:
    model, batch = core_model(), token_batch()
    site = model.sites[1].name
    value = torch.randn(5, 7, 3, 3)
    conditioned = poutine.condition(model, data={site: value})
    guide = Contextual(model)
    trace = poutine.trace(conditioned).get_trace(batch)
    assert trace.nodes[site]["is_observed"]
    assert torch.equal(trace.nodes[site]["value"], value)
    with poutine.condition(data={site: value}):
        guide(batch)
    assert torch.equal(guide.trace.nodes[site]["value"], value)


def test_replay_repeats_the_outputs() -> None:
    model, batch = core_model(), token_batch()
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    guide(batch)
    trace = guide.trace.copy()
    outputs = poutine.replay(model, trace=trace)(batch)
    logits = trace.nodes["obs"]["fn"].logits
    torch.testing.assert_close(outputs[..., 0], logits)
    assert (model(batch)[..., 0] - logits).abs().max() > 1e-4


def test_log_joint_of_the_model() -> None:
    """Trace of the conditioned model: log-likelihood of N = 50 examples, of which 5 are seen, plus log-prior."""
    model, batch = core_model("global"), token_batch()
    core = torch.randn(4, 3, 3) * 0.2
    trace = poutine.trace(poutine.condition(model, data={"core.global": core})).get_trace(batch)
    logit = trace.nodes["obs"]["fn"].logits
    expected = (
        -50 * nn.functional.binary_cross_entropy_with_logits(logit, batch.targets)
        + torch.distributions.Normal(0.0, 0.2).log_prob(core).sum()
    )
    torch.testing.assert_close(trace.log_prob_sum(), expected)
