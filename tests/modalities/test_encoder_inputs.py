"""Models of several encoders: an example without a real position, and one module under two names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, adapted_layers, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.models import CoLA, ConcatLoRA, Wander
from tests.refusals import refuses
from tests.text_and_audio import batch, encoders

WANDER: dict[str, Any] = {"num_data": 4, "lengths": {"text": 3, "audio": 3}, "fusion_rank": 2, "terms": 2}
MODELS: dict[str, Any] = {
    "concat": lambda nets: ConcatLoRA(nets, Bernoulli(), rank=2),
    "cola": lambda nets: CoLA(nets, Bernoulli(), rank=2),
    "wander": lambda nets: Wander(nets, Bernoulli(), **WANDER),
    "wander, every layer": lambda nets: Wander(nets, Bernoulli(), every_layer=True, **WANDER),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", ["text.attention_mask", "audio.token_mask"])
def test_an_example_without_a_real_position_lacks_the_modality(name: str, mask: str) -> None:
    model, data = MODELS[name](encoders()), batch()
    guide = Hypernetwork(model, gamma=4) if isinstance(model, CoLA) else Delta(model)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in [*model.trainable_parameters().values(), *guide.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    real = {"text.attention_mask": torch.ones(4, 7), "audio.token_mask": torch.ones(4, 10)}[mask].long()
    some = real.index_fill(0, torch.tensor([1]), 0)
    encoder, given = mask.partition(".")[0], {k: v for k, v in data.inputs.items() if k != mask}

    def answer(**more: Tensor) -> Tensor:
        return predict(model, guide, Batch(given | more, data.targets)).probs

    padded = answer(**{mask: some})
    flagged = answer(**{mask: real, f"{encoder}.present": torch.tensor([1, 0, 1, 1])})
    assert not torch.allclose(flagged[1], answer(**{mask: real})[1])
    torch.testing.assert_close(padded, flagged, rtol=1e-5, atol=1e-6)
    both = answer(**{mask: some, f"{encoder}.present": torch.tensor([1, 1, 0, 1])})
    torch.testing.assert_close(both[[0, 1, 3]], flagged[[0, 1, 3]], rtol=1e-5, atol=1e-6)
    ELBO(model, guide, kl_weight=0.0)(Batch(given | {mask: some}, data.targets)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_one_module_under_two_names_is_refused(name: str) -> None:
    text, audio = encoders().values()
    with refuses(ConfigError, "'text'", "'again'", "copy.deepcopy(encoder)"):
        MODELS[name](nn.ModuleDict({"text": text, "audio": audio, "again": text}))
    assert not adapted_layers(text)


@pytest.mark.parametrize("key", ["text.attention_mask", "audio.token_mask"])
def test_a_mask_that_is_added_to_scores_is_not_read_inverted(key: str) -> None:
    model = MODELS["concat"](encoders())
    length = 7 if key.startswith("text") else 10
    added = torch.zeros(4, length).index_fill(1, torch.tensor([length - 1]), -1e9)
    with refuses(DataError, key, 0, 1, "-1e+09"):
        model(Batch(batch().inputs | {key: added}))
    model(Batch(batch().inputs | {key: (added == 0).float()}))


def test_present_is_yes_or_no() -> None:
    with refuses(DataError, "text.present", 0, 1, 0.5):
        Batch(batch().inputs | {"text.present": torch.tensor([1.0, 0.5, 1.0, -1.0])})


@pytest.mark.parametrize("name", MODELS)
def test_present_has_one_entry_an_example(name: str) -> None:
    data = Batch(batch().inputs | {"text.present": torch.ones(4, 1)})
    with refuses(DataError, "text.present", "(B,)", (4, 1)):
        MODELS[name](encoders())(data)


@pytest.mark.parametrize(
    "name", ["atention_mask", "attention_masks", "text.atention_mask", "text.tokens_mask", "a.presnt"]
)
def test_a_misspelled_mask_is_not_ignored(name: str) -> None:
    with refuses(DataError, f"inputs['{name}']"):
        Batch(batch().inputs | {name: torch.ones(4, 7)})


@pytest.mark.parametrize(
    "name", ["token_type_ids", "global_attention_mask", "pixel_mask", "bool_masked_pos", "a.decoder_attention_mask"]
)
def test_other_arguments_are_the_backbones_own(name: str) -> None:
    Batch({name: torch.ones(4, 7)})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mark", ["present", "token_mask", "attention_mask"])
def test_a_modality_that_is_marked_as_there_has_inputs(name: str, mark: str) -> None:
    """It was taken for missing without a word."""
    text = {key: value for key, value in batch().inputs.items() if key.startswith("text.")}
    marks = torch.tensor([0, 1, 1, 0]) if mark == "present" else torch.tensor([[0, 0], [1, 0], [1, 1], [0, 0]])
    model = MODELS[name](encoders())
    guide = Hypernetwork(model, gamma=4) if isinstance(model, CoLA) else Delta(model)
    with refuses(DataError, [1, 2], "'audio'", "audio.present"):
        predict(model, guide, Batch(text | {f"audio.{mark}": marks}))
    without = predict(model, guide, Batch(text | {f"audio.{mark}": torch.zeros_like(marks)}))
    assert torch.equal(without.probs, predict(model, guide, Batch(text)).probs)
