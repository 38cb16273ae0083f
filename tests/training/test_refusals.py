"""Runs that would train nothing, or only a part, are refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayes_adapters import Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA
from tests.helpers import bert, token_batch
from tests.internals import hooks_of
from tests.refusals import refuses
from tests.training.parts import Items, join, pair, run, same, weights


class Cutting(nn.Linear):
    """A linear layer that hands on no gradient, at once or from the first pass without gradients on."""

    seen = False
    at_once = True

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen or not torch.is_grad_enabled()
        if self.at_once or self.seen:
            with torch.no_grad():
                return super().forward(x)
        return super().forward(x)


def cut(backbone: nn.Module, path: str, at_once: bool) -> nn.Module:
    old = backbone.get_submodule(path)
    new = Cutting(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    new.at_once = at_once
    backbone.set_submodule(path, new)
    return backbone


OUT = "encoder.layer.1.attention.output.dense"


@pytest.mark.parametrize("guide", [Delta, MeanField])
def test_a_frozen_layer_that_hands_on_no_gradient_is_named(guide: Any) -> None:
    model, guide = pair(guide, granularity="global", num_data=22, backbone=cut(bert(), OUT, at_once=True))
    before = weights(model, guide)
    with refuses(ConfigError, repr(OUT), "a Cutting"):
        run(model, guide)
    assert same(weights(model, guide), before)


def test_also_where_it_stops_after_the_first_evaluation() -> None:
    """The first epoch trains; validation at its end runs without gradients, and the second epoch is refused."""
    model, guide = pair(backbone=cut(bert(), OUT, at_once=False))
    steps: list[int] = []
    with refuses(ConfigError, repr(OUT), "a Cutting"):
        run(model, guide, validation=[token_batch()], on_step=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_the_backbone_is_none_of_that(reentrant: bool) -> None:
    backbone = bert()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its new name, which earlier versions lack
        backbone.gradient_checkpointing_enable({"use_reentrant": reentrant})
    backbone.enable_input_require_grads()
    model = LoRA(backbone, Bernoulli(), rank=2)
    assert run(model, Delta(model), epochs=1).steps == 6


def test_adapters_that_nobody_reads_are_refused() -> None:
    model = LoRA(bert(), Bernoulli(), targets=["pooler.dense"], rank=2)
    with refuses(ConfigError, "'pooler.dense'"):
        run(model, Delta(model))


def test_some_of_them_may_be_unread() -> None:
    model = LoRA(bert(), Bernoulli(), targets=["pooler.dense", "query"], rank=2)
    assert run(model, Delta(model), epochs=1).steps == 6
    assert hooks_of(model) == 0


@pytest.mark.parametrize("which", ["model", "guide"])
def test_parameters_of_half_precision_are_refused(which: str) -> None:
    model, guide = pair(MeanField)
    {"model": model.head, "guide": guide}[which].to(torch.bfloat16)
    with refuses(ConfigError, "torch.bfloat16", "float32", which):
        run(model, guide)


def test_double_precision_is_not() -> None:
    model, guide = pair(MeanField)
    guide.double()
    assert run(model, guide, epochs=1).steps == 6


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    run(*pair(), epochs=1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with refuses(ConfigError, 4, "WORLD_SIZE=4", "torch.distributed.init_process_group()"):
        run(*pair(), epochs=1)


def test_workers_that_live_on_cannot_be_continued(tmp_path: Any) -> None:
    loader = DataLoader(Items(), batch_size=4, collate_fn=join, num_workers=1, persistent_workers=True)
    with refuses(ConfigError, "persistent_workers=True", "persistent_workers=False"):
        run(*pair(), loader, checkpoint=tmp_path)
