"""Several encoders, and one target per segment of time, whatever the rates of their tokens."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.likelihoods import Tasks
from bayes_adapters.models import CoLA, ConcatLoRA
from bayes_adapters.models._dense import segment_means
from tests.helpers import WIDTH, bert, fill_B, logits
from tests.refusals import refuses
from tests.test_dense_tokens import hidden_of, wander
from tests.text_and_audio import batch, encoders

LABELS = torch.tensor([[0, 2, 1], [1, -100, 0], [2, 2, 2], [-100, 0, 1]])


def concat(count: int, likelihood: Any = None, **options: Any) -> Any:
    model = fill_B(ConcatLoRA(encoders(1, 1), likelihood or Tagging(3), rank=2, dense=count, **options))
    with torch.no_grad():
        for null in model.null.values():
            null.normal_()
    return model


def features(model: Any, data: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.encode(data, 1)
    return found


@pytest.mark.parametrize(("tokens", "count"), [(6, 3), (7, 3), (3, 7), (5, 5), (4, 1), (10, 4)])
def test_tokens_count_as_much_as_they_overlap(tokens: int, count: int) -> None:
    """Token k lasts from k/n to (k + 1)/n, segment s from s/T to (s + 1)/T."""
    weight = torch.zeros(count, tokens, dtype=torch.float64)
    for s in range(count):
        for k in range(tokens):
            end = min(Fraction(k + 1, tokens), Fraction(s + 1, count))
            weight[s, k] = max(0.0, float((end - max(Fraction(k, tokens), Fraction(s, count))) * count))
    torch.testing.assert_close(weight.sum(1), torch.ones(count, dtype=torch.float64))
    hidden = torch.randn(2, tokens + 3, 4, dtype=torch.float64)
    mask = torch.ones(2, tokens + 3, dtype=torch.bool)
    mask[0, tokens:] = False  # behind them, and before and within
    mask[1, [0, 2, tokens + 2]] = False
    real = torch.stack([hidden[i][mask[i]] for i in range(2)])
    nan = hidden.masked_fill(~mask[..., None], float("nan"))
    torch.testing.assert_close(segment_means(nan, mask, count), weight @ real)
    if count == tokens:
        assert torch.equal(segment_means(real, None, count), real)


def test_a_segment_is_the_mean_of_every_encoder_in_it() -> None:
    model = concat(5)
    data = Batch(batch(**{"audio.present": torch.tensor([1, 1, 0, 1])}).inputs)
    found = hidden_of(model, Delta(model), data)
    audio = found["audio"].reshape(4, 5, 2, WIDTH).mean(2)
    audio[2] = model.null["audio"]
    text = torch.stack(
        [segment_means(h[None, :n], None, 5)[0] for h, n in zip(found["text"], (7, 3, 7, 7), strict=True)]
    )
    expected = torch.cat([text, audio], -1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(found["outputs"], expected.log_softmax(-1), rtol=1e-5, atol=1e-6)


def test_one_segment_is_the_model_of_whole_examples() -> None:
    whole = fill_B(ConcatLoRA(encoders(1, 1), Categorical(3), rank=2))
    model = concat(1)
    model.load_state_dict(whole.state_dict())
    torch.testing.assert_close(features(model, batch())[:, 0], features(whole, batch()), rtol=1e-5, atol=1e-6)
    numbers = torch.tensor([0, 1, 2, 0])
    ours = predict(model, Delta(model), Batch(batch().inputs, numbers[:, None]))
    theirs = predict(whole, Delta(whole), Batch(batch().inputs, numbers))
    torch.testing.assert_close(ours.log_density, theirs.log_density)
    torch.testing.assert_close(ours.mean[:, 0], theirs.mean)


def test_as_many_segments_as_tokens_are_the_tokens() -> None:
    nets = nn.ModuleDict({"one": bert(1), "other": bert(1, seed=1)})
    ids = batch().inputs["text.input_ids"]
    data = Batch({"one.input_ids": ids, "other.input_ids": ids.flip(1)})
    model = fill_B(ConcatLoRA(nets, Tagging(3), rank=2, dense=7))
    found = hidden_of(model, Delta(model), data)
    torch.testing.assert_close(features(model, data), torch.cat([found["one"], found["other"]], -1))


def test_segments_given_by_number() -> None:
    model, data = concat(3), Batch(batch().inputs)
    number = torch.tensor([[-1, 0, 0, 1, 1, 1, -1]]).expand(4, -1)
    given = Batch({**data.inputs, "text.segment": number})
    found = hidden_of(model, Delta(model), given)
    seen = features(model, given)[..., :WIDTH]
    torch.testing.assert_close(seen[0, 0], found["text"][0, 1:3].mean(0))
    torch.testing.assert_close(seen[0, 1], found["text"][0, 3:6].mean(0))
    null = model.null["text"]
    assert torch.equal(seen[:, 2], null.expand(4, -1))
    assert torch.equal(seen[1, 1], null)  # its three real tokens are in none and in the first
    even = Batch({**data.inputs, "audio.segment": torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]).expand(4, -1)})
    assert not torch.allclose(features(model, even), features(model, data))
    with refuses(DataError, "text.segment", "0 … 2", 3):
        features(model, Batch({**data.inputs, "text.segment": number + 2}))
    with refuses(DataError, "text.segment", (4, 6), 7):
        features(model, Batch({**data.inputs, "text.segment": number[:, 1:]}))
    with refuses(DataError, "text.segment", "float32"):
        features(model, Batch({**data.inputs, "text.segment": number.float()}))


@pytest.mark.parametrize("kind", ["concat", "cola", "wander"])
def test_training_prediction_and_files(kind: str, tmp_path: Path) -> None:
    tasks = Tasks({"event": Tagging(3), "place": Categorical(2)})
    nets = encoders(1, 1)
    if kind == "wander":
        model, guide = (pooled := wander(nets, tasks, dense=3)), MeanField(pooled)
    else:
        model = CoLA(nets, tasks, rank=2, dense=3) if kind == "cola" else concat(3, tasks)
        guide = Delta(fill_B(model))
    if kind == "cola":  # segments cost no parameters: the paper's counts stay
        whole = CoLA(encoders(1, 1), Categorical(5), rank=2)
        assert [p.shape for p in whole.parameters()] == [p.shape for p in model.parameters()]
    data = Batch(batch().inputs, {"event": LABELS, "place": torch.tensor([0, 1, -100, 1])})
    found = predict(model, guide, data, num_samples=3)
    assert found["event"].mean.shape == (4, 3, 3)
    assert found["place"].mean.shape == (4, 2)
    ids = data.inputs["text.input_ids"]
    padding = torch.where(data.inputs["text.attention_mask"].bool(), ids, 39 - ids)
    other = predict(model, guide, Batch({**data.inputs, "text.input_ids": padding}, data.targets), num_samples=3)
    torch.testing.assert_close(found.log_density, other.log_density, rtol=1e-5, atol=1e-6)
    save(tmp_path / "a", model, guide)
    again = load(tmp_path / "a", encoders(1, 1))
    assert torch.equal(predict(*again, data, num_samples=3)["event"].mean, found["event"].mean)
    ELBO(model, guide)(data).backward()
    grads = [p.grad for p in model.head.parameters()] + [p.grad for p in guide.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    without = predict(model, guide, model.withhold(data, "text", "audio"), num_samples=2)
    assert bool(without["event"].mean.isfinite().all())
    torch.testing.assert_close(without["event"].mean, without["event"].mean[:1, :1].expand(4, 3, 3))


def test_what_is_refused() -> None:
    with refuses(ConfigError, "dense", 0):
        concat(0)
    model = concat(4)
    with refuses(DataError, 3, 4):
        logits(Delta(model), Batch(batch().inputs, LABELS))
