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
    ("call", "kind", "says"),
    [
        (
            lambda: _attribute(batch=token_batch().without("audio")),
            ConfigError,
            "always needs the inputs of its backbone.*single modality",
        ),
        (lambda: _attribute(modalities=["adio"]), ConfigError, r"no modality 'adio'.*Did you mean 'audio'.*audio"),
        (lambda: _attribute(modalities=["text"]), ConfigError, "'text'.*only backbone cannot be"),
        (lambda: _attribute(modalities=["audio", "audio"]), ConfigError, "different names"),
        (lambda: _attribute(modalities=[]), ConfigError, r"different names.*got \[\]"),
        (lambda: _attribute(modalities="audio"), ConfigError, "list of different names.*'audio'"),
        (lambda: _attribute(method="shaply"), ConfigError, "Did you mean 'shapley'"),
        (lambda: _attribute(batch=[]), DataError, "it found none"),  # type: ignore[arg-type]
        (lambda: play(torch.zeros(256, 1, 1), MANY), ConfigError, "need 256 predictions; at most 7"),
        (lambda: core_model().withhold(token_batch(), "video"), ConfigError, "no modality 'video'.*audio"),
        (lambda: cola().withhold(cola_batch(), "vision"), ConfigError, "no modality 'vision'.*text, audio"),
        (
            lambda: attribute(core_model(), Contextual(core_model()), token_batch()),
            ConfigError,
            "built for another model",
        ),
    ],
)
def test_errors(call: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_seven_modalities_are_not_too_many() -> None:
    found = play(torch.zeros(128, 1, 1), MANY[:7])
    assert len(found.uncertainty) == 128
    eight = play(torch.zeros(256, 1, 1), MANY, method="withhold")
    assert len(eight.uncertainty) == 9


def test_a_guide_without_null_context_refuses_in_its_own_words() -> None:
    model = core_model()
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, null_context=False)
    with pytest.raises(DataError, match=r"built with null_context=False"):
        attribute(model, guide, token_batch()[:2], num_samples=2)
