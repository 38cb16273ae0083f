"""One label a token: the density by hand, padding that counts nowhere, and everything a sequence's label can do too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch import distributions as td

from bayes_adapters import (
    ELBO,
    Batch,
    Categorical,
    Frames,
    Prediction,
    Tagging,
    load,
    predict,
    save,
)
from bayes_adapters.distributions import IGNORED, TokenLabels
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, WIDTH, bert, fill_B, llama, pad, token_batch
from tests.information import of_classes
from tests.refusals import refuses, warns

C = 3


def tokens(size: int = 5, seed: int = 1, ignored: bool = True) -> Batch:
    """Class = id mod 3; −100 at the first token of each row, arbitrary classes at padding."""
    batch = token_batch(size, seed=seed)
    labels = batch.inputs["input_ids"] % C
    if ignored:
        labels[:, 0] = IGNORED
    return Batch(batch.inputs, labels, batch.context)


def longer(batch: Batch, extra: int) -> Batch:
    """More padding, with arbitrary ids and arbitrary classes."""
    assert batch.targets is not None
    padded = pad(Batch(batch.inputs, None, batch.context, batch.index), extra)
    labels = torch.cat([batch.targets, torch.randint(0, C, (batch.size, extra))], 1)
    return Batch(padded.inputs, labels, padded.context, batch.index)


def pair(guide: Any = Contextual, granularity: str = "token", **options: Any) -> tuple[Any, Any]:
    model = StochasticCore(bert(), Tagging(C), granularity=granularity, rank=3, num_data=50)
    model = fill_B(model)  # type: ignore[assignment]
    return model, guide(model, **options)


def scored(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.inputs["attention_mask"].bool() & (batch.targets != IGNORED)


# the distribution


def test_density_is_the_sum_over_real_labelled_tokens() -> None:
    logits, batch = torch.randn(2, 5, 7, C), tokens()
    assert batch.targets is not None
    found = TokenLabels(logits, batch.token_mask).log_prob(batch.targets)
    expected = torch.zeros(2, 5)
    for s in range(2):
        for b in range(5):
            for t in range(7):
                if batch.inputs["attention_mask"][b, t] and batch.targets[b, t] != IGNORED:
                    expected[s, b] += td.Categorical(logits=logits[s, b, t]).log_prob(batch.targets[b, t])
    assert found.shape == (2, 5)
    torch.testing.assert_close(found, expected)


def test_the_density_sums_to_one_over_all_labellings() -> None:
    fn = TokenLabels(torch.randn(1, 3, 2), torch.tensor([[True, True, False]]))
    every = torch.cartesian_prod(*[torch.arange(2)] * 2)
    labels = torch.cat([every, torch.full((4, 1), IGNORED)], 1)
    torch.testing.assert_close(fn.log_prob(labels).exp().sum(), torch.tensor(1.0))


def test_draws_follow_the_probabilities_and_leave_padding_out() -> None:
    fn = TokenLabels(torch.randn(4, 3), torch.tensor([True, True, True, False]))
    drawn = fn.sample(torch.Size([20_000]))
    assert (drawn[:, 3] == IGNORED).all()
    found = torch.nn.functional.one_hot(drawn[:, :3], C).float().mean(0)
    torch.testing.assert_close(found, fn.probs[:3], rtol=0, atol=0.02)  # 0.02 is 5.6 standard errors
    assert (fn.mean[3] == 0).all()
    wide = fn.expand(torch.Size([2]))
    assert (wide.batch_shape, wide.event_shape) == ((2,), (4,))
    torch.testing.assert_close(wide.log_prob(drawn[0]), fn.log_prob(drawn[0]).expand(2))


# the ELBO


def test_nll_is_the_mean_over_examples_of_the_sum_over_tokens() -> None:
    model, guide = pair(Delta, "global")
    batch = tokens()
    assert batch.targets is not None
    found = ELBO(model, guide).terms(batch).nll
    guide(batch)
    logits = guide.trace.nodes["obs"]["fn"].logits
    each = torch.nn.functional.cross_entropy(logits.mT, batch.targets, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(found, (each * scored(batch)).sum() / batch.size)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_agree(loss: Any) -> None:
    model, guide = pair(Delta)
    batch = tokens()
    stock = torch.as_tensor(loss().loss(model, guide, batch)) / model.data_size(batch)
    torch.testing.assert_close(stock, ELBO(model, guide)(batch).detach(), check_dtype=False)


@pytest.mark.parametrize(
    ("granularity", "guide"), [("token", Contextual), ("sequence", Contextual), ("global", MeanField)]
)
def test_padding_counts_nowhere(granularity: str, guide: Any) -> None:
    batch = tokens()
    results = []
    for given in (batch, longer(batch, 4)):
        torch.manual_seed(2)
        model, q = pair(guide, granularity)
        results.append(predict(model, q, given, num_samples=4))
    short, long = results
    real = batch.inputs["attention_mask"].bool()
    for name in ("mean", "total", "aleatoric", "epistemic"):
        a, b = getattr(short, name), getattr(long, name)
        assert a.shape[:2] == (5, 7)
        assert b.shape[:2] == (5, 11)
        torch.testing.assert_close(a, b[:, :7], rtol=1e-4, atol=2e-6)
        assert (a[~real] == 0).all()
        assert (b[:, 7:] == 0).all()
        assert (a[real] > 0).all()
    torch.testing.assert_close(short.log_density, long.log_density, rtol=1e-5, atol=1e-5)


def test_padding_changes_no_gradient() -> None:
    batch, found = tokens(), []
    for given in (batch, longer(batch, 4)):
        torch.manual_seed(2)
        model = fill_B(LoRA(bert(), Tagging(C), rank=3))
        loss = ELBO(model, Delta(model))(given)
        loss.backward()
        found.append([loss, *(p.grad for p in model.trainable_parameters().values())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_padding_and_unlabelled_tokens_hold_does_not_matter() -> None:
    model, guide = pair(Delta)
    batch = tokens()
    assert batch.targets is not None
    reference = ELBO(model, guide)(batch)
    other = torch.where(scored(batch), batch.targets, IGNORED)
    assert not torch.equal(other, batch.targets)
    torch.testing.assert_close(ELBO(model, guide)(Batch(batch.inputs, other, batch.context)), reference)
    changed = batch.targets.clone()
    changed[0, 2] = (changed[0, 2] + 1) % C
    assert (ELBO(model, guide)(Batch(batch.inputs, changed, batch.context)) - reference).abs() > 1e-4


# prediction


def test_log_density_is_joint_and_probabilities_are_each_tokens_own() -> None:
    model, guide = pair(MeanField, "global", init_scale=1.0)
    batch = tokens()
    assert batch.targets is not None
    found = predict(model, guide, batch, num_samples=6, return_samples=True, chunk_size=4)
    assert found.samples is not None
    assert found.samples.shape == (6, 5, 7, C)
    assert found.mean.shape == (5, 7, C)
    assert found.total.shape == found.epistemic.shape == (5, 7)
    torch.testing.assert_close(found.samples.mean(0), found.mean, rtol=1e-5, atol=1e-6)
    right = found.samples.gather(-1, batch.targets.clamp_min(0).expand(6, -1, -1)[..., None])[..., 0]
    joint = (right.double().log() * scored(batch)).nan_to_num(0.0).sum(-1)
    torch.testing.assert_close(found.log_density.double(), joint.exp().mean(0).log(), rtol=1e-4, atol=1e-5)
    real = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(found.mean.sum(-1), real.float())
    torch.testing.assert_close(found.total, td.Categorical(found.mean + 1e-30).entropy() * real, rtol=1e-4, atol=1e-5)
    expected = of_classes(found.samples[:, real])
    torch.testing.assert_close(found.aleatoric[real].double(), expected.aleatoric, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.epistemic[real].double(), expected.epistemic, rtol=1e-4, atol=1e-6)
    assert not found.epistemic[~real].any()


def test_batches_of_other_lengths_are_joined() -> None:
    model, guide = pair(CrossAttention, context_dim=CONTEXT, dim=4)
    batch = tokens()
    reference = predict(model, guide, batch, num_samples=3, return_samples=True)
    short = Batch({k: v[1:2, :3] for k, v in batch.inputs.items()}, batch.targets[1:2, :3], batch[1:2].context)  # type: ignore[index]
    parts = [batch[:1], Batch(short.inputs, short.targets, short.context, torch.tensor([1])), batch[2:]]
    found = predict(model, guide, parts, num_samples=3, return_samples=True)
    for name in ("mean", "total", "epistemic", "log_density", "samples"):
        a, b = getattr(found, name), getattr(reference, name)
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
    alone = Prediction.concatenate([predict(model, guide, short, num_samples=3)] * 2)
    assert alone.mean.shape == (2, 3, C)


def test_a_draw_of_the_model_has_no_label_at_padding() -> None:
    model, guide = pair()
    batch = tokens().without_targets()
    drawn = pyro.poutine.trace(model).get_trace(batch).nodes["obs"]["value"]
    real = batch.inputs["attention_mask"].bool()
    assert (drawn[~real] == IGNORED).all()
    assert ((drawn[real] >= 0) & (drawn[real] < C)).all()
    assert pyro.infer.Predictive(model, guide=guide, num_samples=2)(batch)["obs"].shape == (2, 5, 7)


# in use


@pytest.mark.parametrize(("backbone", "targets"), [(bert, ["query", "value"]), (llama, ["q_proj", "v_proj"])])
def test_it_learns_the_class_of_every_token(backbone: Any, targets: list[str]) -> None:
    """The label is a function of the token, so a head on the token's own vector must find it; a pooled one cannot."""
    model = LoRA(backbone(1), Tagging(C), targets=targets, rank=4)
    guide, batch = Delta(model), tokens(12, ignored=False)
    fit(model, guide, batch, max_steps=60, optimizer=lambda p: torch.optim.AdamW(p, lr=0.03), progress=False)
    found = predict(model, guide, batch, mean_only=True)
    right = (found.probs.argmax(-1) == batch.targets)[scored(batch)].float().mean()
    assert right > 0.9
    assert found.log_density.mean() / scored(batch).sum(-1).float().mean() > -0.5


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path / "a", model, guide)
    again, guide_again = load(tmp_path / "a", bert())
    assert isinstance(again.likelihood, Tagging)
    assert again.likelihood.config() == {"num_classes": C}
    assert again.pooling == model.pooling == "none"
    batch = tokens()
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)


def test_late_fusion_gives_every_token_the_pooled_context() -> None:
    model = FusionLoRA(bert(), Tagging(C), context_dim=CONTEXT, rank=3, fusion_width=8)
    batch, guide = tokens(), Delta(model)
    found = predict(model, guide, batch).mean
    assert found.shape == (5, 7, C)
    louder = Frames(batch.context["audio"].values + 3.0, batch.context["audio"].mask)
    change = (predict(model, guide, Batch(batch.inputs, None, {"audio": louder})).mean - found).abs().amax(-1)
    real = batch.inputs["attention_mask"].bool()
    heard = real & louder.present[:, None]
    assert (change[heard] > 0).all()
    assert (change[~heard] == 0).all()


def test_a_peft_folder_keeps_the_head_for_taggers_only(tmp_path: Path) -> None:
    model = fill_B(LoRA(bert(), Tagging(C), rank=3))
    model.head.bias.data += 1.0
    to_peft(tmp_path, model)
    again = from_peft(tmp_path, bert(), Tagging(C))
    batch = tokens()
    torch.testing.assert_close(predict(again, Delta(again), batch).mean, predict(model, Delta(model), batch).mean)
    with warns(UserWarning, str(tmp_path), "head=False"):
        other = from_peft(tmp_path, bert(), Categorical(C))
    assert other.pooling == "mean"
    assert not torch.equal(other.head.bias, model.head.bias)
    with refuses(ConfigError, "head=True", str(tmp_path), (C, WIDTH)):
        from_peft(tmp_path, bert(), Categorical(C), head=True)


# mistakes


@pytest.mark.parametrize(
    ("targets", "facts"),
    [
        (
            torch.zeros(5, dtype=torch.long),
            ("(B, T)", "torch.int64", "(5,)"),
        ),
        (torch.zeros(5, 7), ("(B, T)", "torch.float32", "(5, 7)")),
        (torch.full((5, 7), C), ("0 … 2", -100, [3, 3, 3, 3, 3])),
        (torch.full((5, 7), -1), ("0 … 2", -100, [-1, -1, -1, -1, -1])),
        (torch.zeros(5, 6, dtype=torch.long), (6, 7, -100)),
    ],
)
def test_wrong_targets(targets: Tensor, facts: tuple[object, ...]) -> None:
    model, guide = pair(Delta)
    with refuses(DataError, *facts):
        ELBO(model, guide)(Batch(tokens().inputs, targets))
