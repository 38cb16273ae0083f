"""The hidden width of hypernetworks: a share of the descriptor's width, or one number however wide that is."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bayes_adapters import Bernoulli, systems
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.models import CoLA
from tests.cola.parts import cola
from tests.helpers import bert, swin
from tests.refusals import refuses


def _model() -> CoLA:
    return cola(nn.ModuleDict({"text": bert(2), "image": swin((2, 2))}), depths="every-k")


def _hidden(guide: Hypernetwork) -> dict[str, set[tuple[int, int]]]:
    """Source encoder → (descriptor, hidden) widths of the hypernetworks that read it."""
    found: dict[str, set[tuple[int, int]]] = {"text": set(), "image": set()}
    for site, net in zip(guide.model.sites, guide.nets.values(), strict=True):
        assert net.norm.normalized_shape == (net.down.out_features,) == (net.up.in_features,)
        found[site.source].add((net.down.in_features, net.down.out_features))
    return found


@pytest.mark.parametrize(
    ("options", "text", "image"),
    [
        ({"gamma": 4}, {(16, 4)}, {(8, 2), (16, 4)}),
        ({"gamma": 4, "bottleneck": 3}, {(16, 3)}, {(8, 3), (16, 3)}),
        ({"gamma": 8, "bottleneck": {"image": 5}}, {(16, 2)}, {(8, 5), (16, 5)}),
        ({"bottleneck": {"image": 20}}, {(16, 1)}, {(8, 20), (16, 20)}),
    ],
)
def test_bottlenecks(options: dict[str, Any], text: set[tuple[int, int]], image: set[tuple[int, int]]) -> None:
    model = _model()
    guide = Hypernetwork(model, **options)
    assert _hidden(guide) == {"text": text, "image": image}
    again = Hypernetwork(model, **guide.config())
    again.load_state_dict(guide.state_dict())
    assert again.config() == guide.config()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"bottleneck": 0}, ("bottleneck of 'image'", 1, 0)),
        ({"bottleneck": {"image": 0}}, ("bottleneck of 'image'", 1, 0)),
        ({"bottleneck": {"imag": 4}}, ("bottleneck", "'imag'", "image, text")),
        ({"gamma": 16}, ("gamma", 1, 8, 16)),
        ({"gamma": 32, "bottleneck": {"image": 4}}, ("gamma", 1, 16, 32)),
    ],
)
def test_errors(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        Hypernetwork(_model(), **options)


def test_a_system_takes_it() -> None:
    nets = nn.ModuleDict({"text": bert(2), "image": swin((2, 2))})
    _, guide = systems.build("cola", nets, Bernoulli(), depths="every-k", bottleneck=6)
    assert _hidden(guide) == {"text": {(16, 6)}, "image": {(8, 6), (16, 6)}}
