"""Tasks with one target per token, alone and beside tasks with one per example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch import distributions as td

from bayes_adapters import ELBO, Batch, Categorical, Gaussian, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import TwoLayerHead
from bayes_adapters.likelihoods import Likelihood, Tasks
from bayes_adapters.models import ConcatLoRA
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses

B, T = 5, 7
PLACES = torch.arange(B * T).reshape(B, T)
TARGETS = {
    "tags": torch.where(PLACES % 4 == 0, -100, PLACES % 3),
    "sentiment": torch.tensor([1, 0, -100, 1, 0]),
    "shapes": torch.where(PLACES >= 21, -100, PLACES % 4),  # nothing is known of the last two examples
    "length": torch.tensor([0.5, float("nan"), 2.0, 0.0, 1.5]),
}
PARTS: dict[str, Likelihood] = {"tags": Tagging(3), "sentiment": Categorical(2), "shapes": Tagging(4)}
COLUMNS = {"tags": slice(0, 3), "sentiment": slice(3, 5), "shapes": slice(5, 9), "length": slice(9, 10)}


def mixed(**weights: float) -> Tasks:
    return Tasks(PARTS | {"length": Gaussian(0.3)}, weights)


def data() -> Batch:
    plain = token_batch()
    return Batch(plain.inputs, TARGETS, plain.context)


def pair(likelihood: Likelihood, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(4)
    model = core_model("token", likelihood=likelihood, **options)
    return model, MeanField(model, init_scale=0.5)


def by_hand(f: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Task → log p of the targets, shape (B,), from the outputs of every token, one token after another."""
    pooled = torch.stack([f[b, real[b]].mean(0) for b in range(B)])
    found = {name: torch.zeros(B) for name in TARGETS}
    for b in range(B):
        for name in ("tags", "shapes"):
            for t in range(T):
                if real[b, t] and TARGETS[name][b, t] >= 0:
                    found[name][b] += f[b, t, COLUMNS[name]].log_softmax(-1)[TARGETS[name][b, t]]
        if b != 2:
            found["sentiment"][b] = pooled[b, 3:5].log_softmax(-1)[TARGETS["sentiment"][b]]
        if b != 1:
            found["length"][b] = td.Normal(pooled[b, 9], torch.tensor(0.3).exp()).log_prob(TARGETS["length"][b])
    return found


def test_there_is_padding() -> None:
    mask = data().token_mask
    assert mask is not None
    assert 0 < (~mask).sum() < mask.numel()


def test_the_density_is_the_sum_over_tasks_and_their_real_tokens() -> None:
    real: Any = data().token_mask
    f = torch.randn(B, T, 10, generator=torch.Generator().manual_seed(3))
    likelihood = mixed(tags=0.5)
    fn: Any = likelihood.of_tokens(f[None], real)
    expected = by_hand(f, real)
    with torch.no_grad():
        torch.testing.assert_close(likelihood.log_density(fn, TARGETS)[0], sum(expected.values()))
        torch.testing.assert_close(fn.log_prob(fn.pack(TARGETS))[0], sum(expected.values()) - 0.5 * expected["tags"])
        torch.testing.assert_close(fn.log_prob(fn.pack({"tags": TARGETS["tags"]}))[0], 0.5 * expected["tags"])


def test_the_elbo_by_hand_and_pyros_own() -> None:
    model, guide = pair(mixed())
    assert model.head.weight.shape == (10, 16)
    batch = data()
    outputs: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda _m, _a, out: outputs.append(out.detach()))
    torch.manual_seed(1)
    terms = ELBO(model, guide).terms(batch)
    handle.remove()
    expected = by_hand(outputs[0], batch.token_mask)  # type: ignore[arg-type]
    torch.testing.assert_close(terms.nll.detach(), -sum(expected.values()).mean(), check_dtype=False)  # type: ignore[union-attr]
    torch.manual_seed(1)
    stock = torch.as_tensor(TraceMeanField_ELBO().loss(model, guide, batch)) / model.num_data
    torch.testing.assert_close(stock, terms.loss.detach(), check_dtype=False)
    terms.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("name", ["tags", "sentiment", "shapes"])
def test_each_task_is_answered_as_by_a_model_of_its_own(name: str) -> None:
    """One draw of the cores serves all tasks; a linear head on the mean is the mean of a linear head."""
    model, guide = pair(mixed())
    alone, own = pair(PARTS[name])
    own.load_state_dict(guide.state_dict())
    with torch.no_grad():
        for layer, other in zip(model.backbone.modules(), alone.backbone.modules(), strict=True):
            if hasattr(layer, "lora_B"):
                layer.lora_B.normal_(generator=torch.Generator().manual_seed(1))
                other.lora_A.copy_(layer.lora_A)
                other.lora_B.copy_(layer.lora_B)
        alone.head.weight.copy_(model.head.weight[COLUMNS[name]])
        alone.head.bias.copy_(model.head.bias[COLUMNS[name]])
    batch = data()
    ask: Any = {"num_samples": 6, "return_samples": True}
    found = predict(model, guide, batch, **ask)[name]
    expected = predict(alone, own, Batch(batch.inputs, TARGETS[name] if name != "sentiment" else None), **ask)
    assert expected.epistemic.max() > 1e-3
    for part in ("mean", "total", "aleatoric", "epistemic", "samples"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-6)
    if expected.log_density is not None:
        only = predict(model, guide, Batch(batch.inputs, {name: TARGETS[name]}), **ask)
        torch.testing.assert_close(only.log_density, expected.log_density, rtol=1e-4, atol=1e-5)


def test_batches_of_other_lengths_are_joined_task_by_task() -> None:
    model, guide = pair(mixed())
    whole = data()
    real: Any = whole.token_mask
    rows = real.sum(1).argsort()[:2]
    short = int(real[rows].sum(1).max())
    assert short < T
    few = Batch({k: v[rows, :short] for k, v in whole.inputs.items()}, index=rows)
    ask: Any = {"num_samples": 3, "return_samples": True}
    joined = predict(model, guide, [whole.without_targets(), few], **ask)
    alone = predict(model, guide, whole.without_targets(), **ask)
    assert joined.mean.shape == (B + 2, T * 3 + 2 + T * 4 + 1)
    for name in TARGETS:
        for part in ("mean", "total", "epistemic"):
            found, expected = getattr(joined[name], part), getattr(alone[name], part)
            torch.testing.assert_close(found[:B], expected)
            torch.testing.assert_close(found[B:], expected[rows], rtol=1e-4, atol=1e-6)
        found, expected = joined[name].samples, alone[name].samples
        torch.testing.assert_close(found[:, B:], expected[:, rows], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(joined.epistemic[B:], alone.epistemic[rows], rtol=1e-4, atol=1e-6)
    total = alone["tags"].total.sum(1) + alone["shapes"].total.sum(1) + alone["sentiment"].total + alone["length"].total
    torch.testing.assert_close(alone.total, total)


@pytest.mark.parametrize(
    "make", [mixed, lambda: Tasks({"tags": Tagging(3), "shapes": Tagging(4)})], ids=["mixed", "tokens"]
)
def test_it_fits_saves_and_loads(make: Any, tmp_path: Path) -> None:
    likelihood = make()
    model, guide = pair(likelihood, head=TwoLayerHead(12))
    plain = data()
    batch = Batch(plain.inputs, {name: TARGETS[name] for name in likelihood.each})
    optimizer: Any = lambda p: torch.optim.Adam(p, 0.03)  # noqa: E731
    history = fit(model, guide, batch, epochs=40, optimizer=optimizer, kl_weight=0.01, progress=False).history
    assert history[-1]["nll"] < 0.5 * history[0]["nll"]
    save(tmp_path, model, guide)
    again = load(tmp_path, bert())
    first, second = (predict(*two, batch, num_samples=4) for two in ((model, guide), again))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.log_density, second.log_density)  # type: ignore[arg-type]


def test_what_does_not_fit() -> None:
    model, guide = pair(mixed())
    batch = data()
    with refuses(DataError, "'tags'", (B, T - 1), T):
        ELBO(model, guide)(Batch(batch.inputs, {"tags": TARGETS["tags"][:, 1:]}))
    with refuses(DataError, "'tags'", 3):
        ELBO(model, guide)(Batch(batch.inputs, {"tags": TARGETS["tags"] + 3}))
    with refuses(ConfigError, "ConcatLoRA", "Tasks"):
        ConcatLoRA(torch.nn.ModuleDict({"text": bert(1), "other": bert(1)}), mixed())
