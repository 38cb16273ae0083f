"""Gradient checkpointing as people switch it on: loss and gradients are those of a run without it, in less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn
from torch.utils.checkpoint import checkpoint

from bayes_adapters import ELBO, Bernoulli
from bayes_adapters.adapters import same_pass
from bayes_adapters.backbones.prefix import FrozenPrefix
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, RankWise
from bayes_adapters.models import LoRA, StochasticCore, StochasticFactors
from bayes_adapters.systems import SYSTEMS
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, bert, core_model, llama, token_batch
from tests.refusals import refuses
from tests.systems.parts import small

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")


def switch_on(backbone: Any, **options: Any) -> None:
    nets = backbone.values() if isinstance(backbone, nn.ModuleDict) else [backbone]
    for net in nets:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **options})


def drop(model: nn.Module, p: float) -> None:
    """Dropout in the backbone and in the adapters."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def gradients(elbo: ELBO, batches: list[Any]) -> dict[str, Any]:
    """The loss of all batches together and every parameter's gradient: all forward passes, then one backward."""
    elbo.zero_grad()
    torch.manual_seed(5)
    loss = sum(elbo(batch) for batch in batches)
    saved = saved_bytes(lambda: elbo(batches[0]))
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in elbo.named_parameters() if p.grad is not None}} | {
        "saved": saved
    }


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes of what autograd keeps of a pass for its backward, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"saved"}:
        largest = float(expected[name].abs().max())  # other entries are sums of such, and round as they do
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7 + 1e-6 * largest, msg=name)


def both(model: Any, guide: Any, batches: list[Any], **options: Any) -> None:
    elbo = ELBO(model, guide, **options).train()
    expected = gradients(elbo, batches)
    assert len(expected) > 2
    switch_on(model.backbone)
    found = gradients(elbo, batches)
    same(found, expected)
    assert found["saved"] < expected["saved"] or not model.layers, "no block was checkpointed"


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_has_the_same_loss_and_gradients(name: str) -> None:
    """With dropout and without; two forward passes, of other numbers of examples, before one backward."""
    torch.manual_seed(0)
    model, guide, batch = small(name)
    with torch.no_grad():
        for parameter in (p for path, p in model.named_parameters() if "lora_B" in path):
            parameter.normal_(0.0, 0.5)
    for p in (0.0, 0.2):
        drop(model, p)
        model.backbone.apply(lambda module: setattr(module, "gradient_checkpointing", False))
        both(model, guide, [batch, batch[:3]])


@pytest.mark.parametrize("particles", [1, 3])
def test_a_decoder_with_several_draws_in_a_pass(particles: int) -> None:
    model = core_model(backbone=llama(3), targets=["q_proj", "v_proj"])
    both(model, Contextual(model), [token_batch(), token_batch(3, 5)], num_particles=particles)


def test_draws_for_sequences_and_weights_with_noise_of_their_own() -> None:
    model = core_model("sequence")
    drop(model, 0.1)
    both(model, Contextual(model), [token_batch()])
    model = StochasticFactors(bert(), Bernoulli(), rank=2, num_data=50)
    drop(model, 0.1)  # after the weights' noise, so that it shows where that is not drawn again
    both(model, RankWise(model, local_reparametrisation=True), [token_batch()])
    model = core_model(dropout=0.1)
    both(model, CrossAttention(model, context_dim=CONTEXT, dim=4, share_kv=True), [token_batch(), token_batch(4)])


def test_some_blocks_only_and_backward_twice() -> None:
    model = core_model(backbone=bert(3))
    elbo = ELBO(model, Contextual(model)).train()
    expected = gradients(elbo, [token_batch()])
    switch_on(model.backbone)
    model.backbone.encoder.layer[1].gradient_checkpointing = False
    elbo.zero_grad()
    torch.manual_seed(5)
    loss = elbo(token_batch())
    loss.backward(retain_graph=True)
    loss.backward()
    found = {name: p.grad / 2 for name, p in elbo.named_parameters() if p.grad is not None}
    same(found | {"loss": loss.detach(), "saved": 0}, expected)


def test_fit_goes_the_same_way() -> None:
    def trained(checkpointed: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        model = core_model()
        guide = Contextual(model)
        if checkpointed:
            switch_on(model.backbone)
        fit(model, guide, [token_batch(), token_batch(seed=2)], epochs=2, recipe=None, seed=0, progress=False)
        return {**model.trainable_parameters(), **dict(guide.named_parameters())}

    expected = trained(False)
    for name, value in trained(True).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_stochastic_variational_inference_of_pyros() -> None:
    def trained(checkpointed: bool) -> list[float]:
        torch.manual_seed(0)
        pyro.clear_param_store()
        model = core_model().train()
        guide = Contextual(model)
        if checkpointed:
            switch_on(model.backbone)
        svi = SVI(model, guide, ClippedAdam({"lr": 1e-2}), Trace_ELBO())
        torch.manual_seed(1)
        return [svi.step(token_batch()) for _ in range(3)]

    with pyro.settings.context(module_local_params=True):
        assert trained(True) == pytest.approx(trained(False), rel=1e-6)


def test_records_are_those_of_the_first_run() -> None:
    model = core_model().train()
    guide = Contextual(model)
    switch_on(model.backbone)
    with poutine.trace() as recorder:
        guide(token_batch())
    before = {name: id(site["value"]) for record in (recorder, guide) for name, site in record.trace.nodes.items()}
    guide.trace.nodes["obs"]["fn"].logits.sum().backward()
    after = {name: id(site["value"]) for record in (recorder, guide) for name, site in record.trace.nodes.items()}
    assert after == before
    assert not poutine.runtime._PYRO_STACK


def test_a_pass_without_backward_is_freed_and_the_backbone_as_before() -> None:
    model = core_model()
    elbo = ELBO(model, CrossAttention(model, context_dim=CONTEXT, dim=4, share_kv=True)).train()
    switch_on(model.backbone)
    functions = [m._gradient_checkpointing_func for m in model.backbone.encoder.layer]
    terms = elbo.terms(token_batch())
    batch = token_batch()
    loss, held = elbo(batch), weakref.ref(batch)
    assert [m._gradient_checkpointing_func for m in model.backbone.encoder.layer] == functions
    del loss, batch, terms
    gc.collect()
    assert held() is None


def test_what_loses_gradients_or_draws_is_refused() -> None:
    def checkpointed(**options: Any) -> nn.Module:
        backbone = bert()
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        return backbone

    with refuses(ConfigError, "BertModel", "use_reentrant=True", "'use_reentrant': False"):
        StochasticCore(checkpointed(use_reentrant=True), Bernoulli(), rank=2)
    with refuses(ConfigError, "use_reentrant=None"):  # torch's default
        StochasticCore(checkpointed(preserve_rng_state=True), Bernoulli(), rank=2)
    with refuses(ConfigError, "preserve_rng_state=False"):
        StochasticCore(checkpointed(use_reentrant=False, preserve_rng_state=False), Bernoulli(), rank=2)
    LoRA(checkpointed(use_reentrant=True), Bernoulli(), rank=2)
    model = core_model()
    guide = Contextual(model)
    model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with refuses(ConfigError, "use_reentrant=True"):
        ELBO(model, guide).train()(token_batch())
    for module in model.backbone.modules():  # somebody else's function
        if hasattr(module, "gradient_checkpointing"):
            module._gradient_checkpointing_func = lambda *args: checkpoint(*args, use_reentrant=True)
    with refuses(ConfigError, "is reentrant"):
        ELBO(model, guide).train()(token_batch())
    ELBO(model, guide).eval()(token_batch()).backward()


class ByHand(nn.Module):
    """A backbone that checkpoints its one layer by itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config, self.options = type("Config", (), {"hidden_size": 6})(), options
        self.query = nn.Linear(6, 6)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = nn.functional.one_hot(input_ids % 6, 6).float().requires_grad_()
        states = checkpoint(self.query, x, use_reentrant=False, **self.options) if self.options else self.query(x)
        return type("Output", (), {"last_hidden_state": states})()


def test_blocks_that_a_backbone_checkpoints_by_itself() -> None:
    torch.manual_seed(0)
    model = core_model(backbone=ByHand(), targets=["query"])
    elbo, batch = ELBO(model, Contextual(model)).train(), token_batch()
    batch = type(batch)({"input_ids": batch.inputs["input_ids"]}, batch.targets)
    expected = gradients(elbo, [batch])
    model.backbone.options = {"context_fn": same_pass}
    same(gradients(elbo, [batch]), expected)
    model.backbone.options = {"determinism_check": "default"}
    with refuses(ConfigError, "query", "context_fn=bayes_adapters.adapters.same_pass"):
        elbo(batch).backward()


def test_rows_multiply_in_the_whole_backbone_where_hooks_run_again() -> None:
    """Early versions of transformers 5 checkpoint a block together with its hooks."""

    class Early(nn.Module):
        gradient_checkpointing = True

        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

    net: Any = nn.ModuleDict({"early": Early()})
    net.config = type("Config", (), {"to_dict": lambda self: {}})()
    prefix = FrozenPrefix(("early",))
    assert [prefix.is_still(net.train(mode)) for mode in (True, False)] == [False, True]


def test_the_kind_of_checkpointing_does_not_matter_without_random_parts() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    elbo = ELBO(model, Delta(model)).train()
    expected = gradients(elbo, [token_batch()])
    model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    same(gradients(elbo, [token_batch()]), expected)
