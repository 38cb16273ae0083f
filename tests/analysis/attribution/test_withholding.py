"""What a model withholds of a batch, and what cannot be withheld or attributed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bayes_adapters import Batch
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, CrossAttention
from tests.analysis.attribution.parts import cola, cola_batch, play
from tests.helpers import CONTEXT, core_model, token_batch
from tests.refusals import refuses


def test_withhold_masks_frames_and_marks_encoders_absent() -> None:
    model, batch = core_model(), token_batch()
    both = replace(batch, context={**batch.context, "video": batch.context["audio"]})
    assert model.withholdable(both) == ["audio", "video"]
    withheld = model.withhold(both, "audio")
    assert not withheld.context["audio"].mask.any()
    assert withheld.context["video"] is both.context["video"]
    assert both.context["audio"].mask.any(), "the batch given is left as it is"
    heard = cola_batch()
    encoders = cola()
    assert encoders.withholdable(heard) == ["text", "audio"]
    assert encoders.withholdable(cola_batch(["audio"])) == ["audio"]
    absent = encoders.withhold(heard, "audio")
    assert absent.inputs["audio.present"].tolist() == [False] * 4
    assert "text.present" not in absent.inputs
    again = replace(heard, inputs={**heard.inputs, "audio.present": torch.tensor([True, False, True, True])})
    assert not encoders.withhold(again, "audio").inputs["audio.present"].any()


def _attribute(guide: type = Contextual, batch: Batch | None = None, **options: Any) -> Any:
    model = core_model()
    return attribute(model, guide(model), token_batch() if batch is None else batch, num_samples=2, **options)


MANY = [f"m{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("call", "kind", "facts"),
    [
        (
            lambda: _attribute(batch=token_batch().without("audio")),
            ConfigError,
            ("StochasticCore", "CoLA"),
        ),
        (lambda: _attribute(modalities=["adio"]), ConfigError, ("'adio'", "'audio'")),
        (lambda: _attribute(modalities=["text"]), ConfigError, ("'text'", "audio")),
        (lambda: _attribute(modalities=["audio", "audio"]), ConfigError, ("modalities", ["audio", "audio"], "audio")),
        (lambda: _attribute(modalities=[]), ConfigError, ("modalities", [], "audio")),
        (lambda: _attribute(modalities="audio"), ConfigError, ("modalities", "'audio'", "audio")),
        (lambda: _attribute(method="shaply"), ConfigError, ("'shaply'", "'shapley'", "shapley, withhold")),
        (lambda: _attribute(batch=[]), DataError, ("attribute()", "Batch", "none")),  # type: ignore[arg-type]
        (lambda: play(torch.zeros(256, 1, 1), MANY), ConfigError, (8, 256, 7, "method='withhold'")),
        (lambda: core_model().withhold(token_batch(), "video"), ConfigError, ("'video'", "audio")),
        (lambda: cola().withhold(cola_batch(), "vision"), ConfigError, ("'vision'", "text, audio")),
        (
            lambda: attribute(core_model(), Contextual(core_model()), token_batch()),
            ConfigError,
            ("StochasticCore", "Contextual(model)"),
        ),
    ],
)
def test_errors(call: Any, kind: type[Exception], facts: tuple[object, ...]) -> None:
    with refuses(kind, *facts):
        call()


def test_seven_modalities_are_not_too_many() -> None:
    found = play(torch.zeros(128, 1, 1), MANY[:7])
    assert len(found.uncertainty) == 128
    eight = play(torch.zeros(256, 1, 1), MANY, method="withhold")
    assert len(eight.uncertainty) == 9


def test_a_guide_without_null_context_refuses_in_its_own_words() -> None:
    model = core_model()
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, null_context=False)
    with refuses(DataError, "'audio'", [0, 1], "null_context=False"):
        attribute(model, guide, token_batch()[:2], num_samples=2)
