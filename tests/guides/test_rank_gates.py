"""Gates on ranks: Bernoulli's KL, relaxed draws that agree with it, and probabilities that are known exactly."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import kl_divergence

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, adapted_layers, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MCDropout, MeanField, RankGates
from bayes_adapters.guides.rank_gates import RelaxedBernoulliGates
from bayes_adapters.models import GatedLoRA, LoRA
from bayes_adapters.sites import Part
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.guides.parts import trained
from tests.helpers import Linear, bert, fill_B, token_batch
from tests.refusals import refuses


def gated(**options: Any) -> GatedLoRA:
    model = GatedLoRA(bert(), Bernoulli(), **({"num_data": 5, "rank": 3} | options))
    return fill_B(model)  # type: ignore[return-value]


@pytest.mark.parametrize("particles", [1, 3])
def test_the_kl_is_that_of_bernoullis_once_per_data_set(particles: int) -> None:
    model = gated(keep=0.3)
    guide = RankGates(model)
    with torch.no_grad():
        guide.logits["gate-global"].normal_()
    exact = kl_divergence(TorchBernoulli(logits=guide.logits["gate-global"]), TorchBernoulli(torch.tensor(0.3))).sum()
    for mode in (guide.train(), guide.eval()):
        with torch.no_grad():
            found = ELBO(model, mode, num_particles=particles).terms(token_batch()).kl
        torch.testing.assert_close(found, exact / 5, rtol=1e-5, atol=1e-6)


def test_a_relaxed_gate_is_above_a_half_as_often_as_the_gate_is_open() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.5, 2.0])
    for temperature in (0.1, 1.0):
        drawn = RelaxedBernoulliGates(logits, temperature).rsample((20_000,))
        assert float(drawn.min()) >= 0
        assert float(drawn.max()) <= 1
        torch.testing.assert_close((drawn > 0.5).float().mean(0), logits.sigmoid(), rtol=0, atol=0.015)
    exact = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=logits).sample((20_000,))
    torch.testing.assert_close(drawn.mean(0), exact.mean(0), rtol=0, atol=0.015)


def test_a_draw_takes_its_ranks_out_of_the_update() -> None:
    model, batch = gated(keep=0.25), token_batch()
    gates = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    without = LoRA(bert(), Bernoulli(), rank=3)
    without.head = model.head
    with torch.no_grad():
        found = pyro.poutine.condition(model, {"gate.global": gates})(batch)
        pairs = zip(*(adapted_layers(m.backbone).values() for m in (without, model)), gates, strict=True)
        for plain, layer, own in pairs:
            plain.lora_A.copy_(own[:, None] * layer.lora_A)
            plain.lora_B.copy_(layer.lora_B)
        torch.testing.assert_close(found, without(batch))


def regression() -> tuple[GatedLoRA, Batch, Tensor]:
    """Two gates on a linear output under known noise; the probability of each of the four choices given the data."""
    torch.manual_seed(2)
    model = GatedLoRA(Linear(), Gaussian(0.0), targets=["query"], rank=2, alpha=2.0, num_data=8, keep=0.4)
    fill_B(model).requires_grad_(False)
    batch = Batch({"x": torch.randn(8, 1, 4)}, targets=0.5 * torch.randn(8))
    logs = []
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        for choice in itertools.product((0.0, 1.0), repeat=2):
            gates = torch.tensor([choice])
            trace: Any = pyro.poutine.trace(pyro.poutine.condition(model, {"gate.global": gates})).get_trace(batch)
            logs.append(trace.log_prob_sum())
    return model, batch, torch.stack(logs).softmax(0).reshape(2, 2)


def test_training_finds_the_best_independent_probabilities() -> None:
    """Coordinate ascent on the four choices: ``logit φ_1 = E_φ2 [log p(1, g_2) − log p(0, g_2)]``, and so on."""
    model, batch, exact = regression()
    phi, logs = torch.tensor([0.5, 0.5]), exact.log()
    for _ in range(200):
        other = torch.stack([1 - phi[1], phi[1]])
        phi[0] = ((logs[1] - logs[0]) @ other).sigmoid()
        other = torch.stack([1 - phi[0], phi[0]])
        phi[1] = (other @ (logs[:, 1] - logs[:, 0])).sigmoid()
    assert (phi - 0.4).abs().max() > 0.1, "data that say nothing would show nothing"
    guide = RankGates(model, init_probability=0.5, temperature=0.1)
    trained(model, guide, batch, lr=0.05)
    torch.testing.assert_close(guide.inclusion()["query"], phi, rtol=0, atol=0.05)


def test_it_fits_predicts_with_hard_gates_saves_and_loads(tmp_path: Path) -> None:
    model, batch = gated(), token_batch()
    guide = RankGates(model)
    before = guide.logits["gate-global"].detach().clone()
    fit(model, guide, batch, epochs=2, progress=False)
    assert not torch.equal(guide.logits["gate-global"], before)
    seen: list[Tensor] = []
    model.backbone.register_forward_hook(lambda *_: seen.append(guide.trace.nodes["gate.global"]["value"]))
    with torch.no_grad():
        guide.logits["gate-global"].zero_()
    found = predict(model, guide, batch, num_samples=6)
    assert set(torch.cat([v.flatten() for v in seen]).tolist()) == {0.0, 1.0}
    assert found.epistemic.max() > 0
    with torch.no_grad():
        guide.eval()(batch)
    assert set(guide.trace.nodes["gate.global"]["value"].flatten().tolist()) == {0.0, 1.0}
    save(tmp_path / "a", model, guide)
    again, guide_again = load(tmp_path / "a", bert())
    assert torch.equal(predict(again, guide_again, batch, num_samples=6).mean, found.mean)
    assert guide_again.config() == guide.config()


def test_a_draw_becomes_a_smaller_plain_lora() -> None:
    model, batch = gated(), token_batch()
    guide = RankGates(model, init_probability=0.5)
    samples = predict(model, guide, batch, num_samples=3, return_samples=True).samples
    for draw in range(3):
        lora = to_lora(model, guide, bert(), draw=draw, drop_zero=True)
        torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, samples[draw], rtol=1e-4, atol=1e-5)
        assert sum(lora.ranks.values()) < 12
    mean = to_lora(model, guide, bert())
    expected = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(predict(mean, Delta(mean), batch).mean, expected, rtol=1e-4, atol=1e-5)


def test_gates_are_the_same_constant_wherever_they_are_copied() -> None:
    import pickle

    assert copy.deepcopy(Part.GATE) is Part.GATE
    assert pickle.loads(pickle.dumps(Part.GATE)) is Part.GATE


def test_what_is_refused() -> None:
    for wrong in ({"init_probability": 1.0}, {"temperature": 0.0}):
        with refuses(ConfigError, *wrong):
            RankGates(gated(), **wrong)
    for guide_type in (MeanField, MCDropout, Delta):
        with refuses(ConfigError, "gate", "RankGates"):
            guide_type(gated())
    with refuses(ConfigError, "keep", 0.0):
        gated(keep=0.0)
    with refuses(ConfigError, "'gate.global'", "Normal", "LoRA"):
        gated(prior=dist.Normal(0.0, 1.0))
    with refuses(ConfigError, "'gate.global'", "Bernoulli", "LoRA"):
        gated(prior=dist.Bernoulli(torch.tensor(1.0)))
    model = gated()
    guide = RankGates(model)
    with refuses(ConfigError, "RankGates", "bayes_adapters.ELBO"):
        SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(token_batch())
    pyro.clear_param_store()
