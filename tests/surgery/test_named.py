"""Adapters by names on one backbone: added, switched, deleted, and mixed within a batch."""

from __future__ import annotations

from typing import Any

import torch

from bayes_adapters import Categorical, adapted_layers, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import LoRA, StochasticDown
from bayes_adapters.surgery.named import NamedAdapters
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses


def three() -> NamedAdapters:
    named = NamedAdapters(bert(layers=1))
    torch.manual_seed(5)
    local = core_model(backbone=named.bare())
    named.add("local", local, Contextual(local))
    wide = fill_B(StochasticDown(named.bare(), Categorical(3), rank=2, num_data=9))
    named.add("global", wide, MeanField(wide, init_scale=0.2))
    plain = fill_B(LoRA(named.bare(), Categorical(3), targets=["value"], rank=1))
    named.add("plain", plain, Delta(plain))
    return named


def test_rows_under_different_adapters_are_the_rows_alone() -> None:
    named = three()
    batch = token_batch().without_targets()
    names = ["global", "local", "plain", "global", "local"]
    options: dict[str, Any] = {"num_samples": 3, "seed": 4, "return_samples": True}
    found = named.predict(batch, names, **options)
    assert named.active == "plain", "what was in the backbone is in it again"
    assert sorted(row for rows, _ in found.values() for row in rows.tolist()) == [0, 1, 2, 3, 4]
    for name, (rows, answer) in found.items():
        for place, row in enumerate(rows.tolist()):
            assert names[row] == name
            model, guide = named[name]
            named.activate(name)
            alone = predict(model, guide, batch[row : row + 1], **options)
            torch.testing.assert_close(answer.samples[:, place], alone.samples[:, 0], rtol=0, atol=1e-6)
            torch.testing.assert_close(answer.epistemic[place], alone.epistemic[0], rtol=0, atol=1e-6)
    spread = found["global"][1].samples
    assert (spread[0] - spread[1]).abs().max() > 1e-3, "draws differ"


def test_names_are_switched_and_deleted() -> None:
    named = three()
    batch = token_batch().without_targets()
    assert list(named) == ["local", "global", "plain"]
    assert len(named) == 3
    model, guide = named["global"]
    named.activate("global")
    before = predict(model, guide, batch, num_samples=2).probs
    named.activate("local")
    named.delete("plain")
    assert named.active == "local"
    named.delete("local")
    assert named.active is None
    assert not adapted_layers(named.backbone)
    assert torch.equal(predict(named.activate("global"), guide, batch, num_samples=2).probs, before)


def test_what_is_refused() -> None:
    named = three()
    other = LoRA(bert(layers=1), Categorical(3), rank=1)
    with refuses(ConfigError, "'plain'", "delete"):
        named.add("plain", *named["plain"])
    with refuses(ConfigError, "LoRA", "named.bare()"):
        named.add("other", other, Delta(other))
    with refuses(ConfigError, "'plan'", "plain"):
        named.activate("plan")
    with refuses(ConfigError, 5, "2 names"):
        named.predict(token_batch(), ["plain", "local"])
    with refuses(ConfigError, 5, "'plain'"):
        named.predict(token_batch(), "plain")
