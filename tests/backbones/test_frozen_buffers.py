"""No buffer of a frozen backbone moves, whoever trains, and each module has the mode it had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual
from bayes_adapters.training import fit
from tests.helpers import WIDTH, bert, core_model, token_batch
from tests.refusals import refuses


class Moving(nn.Module):
    """A norm by a running scale, with dropout, that moves in eval mode too if ``always``."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(WIDTH))
        self.always, self.dropout = always, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            self.scale.mul_(0.9).add_(0.1 * x.detach().float().square().mean((0, 2)))
        return self.dropout(x / self.scale[:, None])


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(WIDTH),
    "instance": lambda: nn.InstanceNorm1d(WIDTH, track_running_stats=True),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv1d(WIDTH, WIDTH, 1)),
    "own": Moving,
}


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.bert, self.norm = bert(), norm
        self.config = self.bert.config

    def forward(self, **inputs: Any) -> Any:
        out = self.bert(**inputs)
        out.last_hidden_state = self.norm(out.last_hidden_state.mT).mT
        return out


def elbo_loop(model: Any, guide: Any) -> None:
    ELBO(model, guide)(token_batch()).backward()


def svi_loop(model: Any, guide: Any) -> None:
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    svi.step(token_batch())
    pyro.clear_param_store()


LOOPS: dict[str, Callable[[Any, Any], object]] = {
    "elbo": elbo_loop,
    "svi": svi_loop,
    "fit": lambda model, guide: fit(model, guide, [token_batch()], epochs=2, progress=False),
    "predict": lambda model, guide: predict(model, guide, token_batch(), num_samples=2),
    "adapters disabled": lambda model, guide: _without(model),
}


def _without(model: Any) -> None:
    with model.adapters_disabled():
        model(token_batch())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_buffer_moves(norm: str, loop: str) -> None:
    torch.manual_seed(0)
    model = core_model(backbone=Normed(NORMS[norm]()))
    guide = Contextual(model)
    model.train()
    modes = [module.training for module in model.modules()]
    before = {name: b.clone() for name, b in model.backbone.named_buffers()}
    LOOPS[loop](model, guide)
    assert [module.training for module in model.modules()] == modes
    assert before
    for name, b in model.backbone.named_buffers():
        assert torch.equal(b, before[name]), name


def test_the_rest_of_the_module_trains_on() -> None:
    model = core_model(backbone=Normed(Moving())).train()
    seen: list[tuple[bool, bool]] = []
    norm = model.backbone.norm
    norm.register_forward_pre_hook(lambda module, _: seen.append((module.training, module.dropout.training)))
    model(token_batch())
    assert seen == [(False, True)]


def test_a_buffer_that_moves_all_the_same_is_refused() -> None:
    model = core_model(backbone=Normed(Moving(always=True)))
    with refuses(ConfigError, "Moving", "'scale'", "backbone.apply(torch.ao.quantization.disable_observer)"):
        model(token_batch())
