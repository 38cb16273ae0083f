"""CoLA under gradient checkpointing: schedules, noise in both encoders, one of them alone, a guide's shared work."""

from __future__ import annotations

import gc
import inspect
import weakref
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from bayes_adapters import ELBO
from bayes_adapters.guides import Hypernetwork, MeanField
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.sites import Granularity, Part, SiteCall
from tests.cola.parts import cola
from tests.test_recomputation import drop, gradients, same, switch_on
from tests.text_and_audio import batch as pair_batch
from tests.text_and_audio import encoders

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")


class Shared(AdapterGuide):
    """q(Φ) whose mean has a part that all sites share, made once in a pass."""

    name = "shared"
    serves, parts = frozenset({Granularity.SEQUENCE}), frozenset({Part.CROSS})

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.net = nn.ParameterDict({site_key(s): nn.Parameter(torch.randn(s.shape)) for s in model.sites})
        self.scale = nn.Parameter(torch.tensor(0.3))

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        loc = self.net[site_key(call.site)] + call.memo.once(self, "shift", lambda: self.scale.tanh() + self.scale**3)
        return dist.Normal(loc, self.scale.square()).to_event(2)

    def config(self) -> dict[str, Any]:
        return {}


def loss_and_gradients(model: Any, guide: Any, alone: str | None, **options: Any) -> None:
    elbo = ELBO(model, guide, **options).train()
    batches = [pair_batch(), pair_batch(2)]
    expected = gradients(elbo, batches)
    switch_on(model.backbone if alone is None else model.backbone[alone])
    found = gradients(elbo, batches)
    same(found, expected)
    assert found["saved"] < expected["saved"]


@pytest.mark.parametrize("schedule", ["uniform", "module", "progressive"])
@pytest.mark.parametrize("alone", [None, "audio"])
def test_schedules_with_noise(schedule: str, alone: str | None) -> None:
    model = cola(encoders(), schedule=schedule, dropout=0.2)
    drop(model, 0.2)
    loss_and_gradients(model, Hypernetwork(model, gamma=2, scale="softplus"), alone, num_particles=2)


def together_with_hooks(net: nn.Module) -> None:
    """Make the blocks of ``net`` those of early versions of transformers 5, which run hooks again, too."""

    def make(kind: Any) -> type:
        class Early(kind):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                if not (self.gradient_checkpointing and self.training):
                    return super().__call__(*args, **kwargs)
                return self._gradient_checkpointing_func(partial(super().__call__, **kwargs), *args)

        Early.forward = inspect.unwrap(kind.forward)
        return Early

    for module in [m for m in net.modules() if isinstance(m, GradientCheckpointingLayer)]:
        module.__class__ = make(type(module))


@pytest.mark.parametrize("early", [False, True])
def test_other_posteriors_and_what_a_guide_makes_once(early: bool) -> None:
    for make in (MeanField, Shared):
        model = cola(encoders())
        if early:
            together_with_hooks(model.backbone)
        loss_and_gradients(model, make(model), None)


def test_a_pass_without_backward_is_freed() -> None:
    model = cola(encoders())
    elbo = ELBO(model, Hypernetwork(model, gamma=2, scale="softplus")).train()
    switch_on(model.backbone)
    batch = pair_batch()
    loss, held = elbo(batch), weakref.ref(batch)
    del loss, batch
    gc.collect()
    assert held() is None
