"""Several labels, numbers or tasks per example: densities by hand, and what is not known counts nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch import distributions as td

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import MeanField
from bayes_adapters.likelihoods import Likelihood, MultiGaussian, MultiLabel, Tasks
from bayes_adapters.training import batches, fit
from tests.helpers import bert, core_model, token_batch
from tests.information import averaged
from tests.refusals import refuses

S, B = 6, 5
NAN = float("nan")
NUMBERS = torch.tensor([[0.5, -1.0], [2.0, NAN], [0.0, 0.3], [NAN, 1.0], [1.0, 1.0]])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, NAN, 0.25], [0.0, 0.0, 0.0], [NAN, NAN, 1.0], [1.0, 1.0, 1.0]])
TASKS = {
    "sentiment": torch.tensor([0, 2, -100, 1, 1]),
    "length": torch.tensor([0.5, NAN, 2.0, 0.0, 1.5]),
    "topics": torch.where(torch.arange(5)[:, None] == 2, NAN, LABELS),
}


def tasks(**weights: float) -> Tasks:
    return Tasks({"sentiment": Categorical(3), "length": Gaussian(0.3), "topics": MultiLabel(3)}, weights)


def outputs(k: int) -> Tensor:
    return torch.randn(S, B, k, generator=torch.Generator().manual_seed(3))


def pair(likelihood: Likelihood, granularity: str = "token") -> tuple[Any, Any]:
    model = core_model(granularity, likelihood=likelihood)
    return model, MeanField(model, init_scale=0.5)


# several labels


def test_labels_by_hand() -> None:
    f = outputs(3)
    p = torch.sigmoid(f)
    found = MultiLabel(3).distribution(f).log_prob(LABELS)
    expected = torch.zeros(S, B)
    for b in range(B):
        for k in range(3):
            y = LABELS[b, k].item()
            if y == y:
                expected[:, b] += y * p[:, b, k].log() + (1 - y) * (1 - p[:, b, k]).log()
    torch.testing.assert_close(found, expected)


def test_labels_are_as_many_bernoullis() -> None:
    f = outputs(3)
    found = averaged(MultiLabel(3), f)
    each = [averaged(Bernoulli(), f[..., k : k + 1]) for k in range(3)]
    for name in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(found, name), torch.stack([getattr(part, name) for part in each], -1))
    torch.testing.assert_close(found.summed().total, found.total.sum(1))
    assert found.summed().mean.shape == (B, 3)


# several numbers


def test_numbers_are_as_many_gaussians() -> None:
    likelihood = MultiGaussian(2, target_mean=[1.0, -2.0], target_scale=[2.0, 0.5])
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.tensor([0.3, -0.4]))
    each = [
        Gaussian(0.3, target_mean=1.0, target_scale=2.0),
        Gaussian(-0.4, target_mean=-2.0, target_scale=0.5),
    ]
    f = outputs(2)
    found = averaged(likelihood, f)
    parts = [averaged(one, f[..., k : k + 1]) for k, one in enumerate(each)]
    for name in ("mean", "total", "aleatoric", "epistemic", "variance"):
        torch.testing.assert_close(getattr(found, name), torch.stack([getattr(p, name) for p in parts], -1))
    expected = torch.zeros(S, B)
    for k, one in enumerate(each):
        known = ~NUMBERS[:, k].isnan()
        scores = one.distribution(f[:, known, k : k + 1]).log_prob(NUMBERS[known, k])
        expected[:, known] += scores.detach()
    torch.testing.assert_close(likelihood.distribution(f).log_prob(NUMBERS).detach(), expected)


def test_what_is_not_known_has_no_gradient() -> None:
    for likelihood, targets in ((MultiLabel(3), LABELS), (MultiGaussian(2), NUMBERS)):
        f = outputs(targets.shape[1]).requires_grad_()
        likelihood.distribution(f).log_prob(targets).sum().backward()
        assert f.grad is not None
        assert f.grad.isfinite().all()
        assert (f.grad[:, targets.isnan()] == 0).all()
        assert (f.grad[:, (~targets.isnan()) & (targets != 0.25)] != 0).all()


# several tasks


def test_the_joint_density_is_the_weighted_sum_over_labelled_tasks() -> None:
    likelihood, f = tasks(length=0.5), outputs(7)
    fn: Any = likelihood.distribution(f)
    expected = {
        "sentiment": td.Categorical(logits=f[..., :3]).log_prob(TASKS["sentiment"].clamp_min(0)),
        "length": td.Normal(f[..., 3], torch.tensor(0.3).exp()).log_prob(TASKS["length"].nan_to_num()),
        "topics": MultiLabel(3).distribution(f[..., 4:]).log_prob(TASKS["topics"]),
    }
    expected["sentiment"][:, 2] = 0
    expected["length"][:, 1] = 0
    torch.testing.assert_close(likelihood.log_density(fn, TASKS), sum(expected.values()))
    torch.testing.assert_close(
        fn.log_prob(fn.pack(TASKS)), expected["sentiment"] + 0.5 * expected["length"] + expected["topics"]
    )
    torch.testing.assert_close(fn.log_prob(fn.pack({"length": TASKS["length"]})), 0.5 * expected["length"])


def test_each_task_is_predicted_as_by_its_own_likelihood() -> None:
    f = outputs(7)
    found = averaged(tasks(), f)
    alone = {"sentiment": Categorical(3), "length": Gaussian(0.3), "topics": MultiLabel(3)}
    columns = {"sentiment": f[..., :3], "length": f[..., 3:4], "topics": f[..., 4:]}
    for name, likelihood in alone.items():
        expected = averaged(likelihood, columns[name])
        for part in ("mean", "total", "aleatoric", "epistemic"):
            assert torch.equal(getattr(found[name], part), getattr(expected, part)), (name, part)
    assert found.mean.shape == (B, 7)
    torch.testing.assert_close(
        found.epistemic, found["sentiment"].epistemic + found["length"].epistemic + found["topics"].epistemic.sum(1)
    )
    with refuses(ConfigError, "'sentimnt'", "'sentiment'"):
        found["sentimnt"]


def test_the_elbo_is_the_sum_of_the_tasks_and_pyros_own_agrees() -> None:
    model, guide = pair(tasks())
    batch = token_batch(targets=torch.zeros(B))
    batch = Batch(batch.inputs, TASKS, batch.context)
    torch.manual_seed(1)
    together = ELBO(model, guide).terms(batch)
    alone = []
    for name, values in TASKS.items():
        torch.manual_seed(1)
        alone.append(ELBO(model, guide).terms(Batch(batch.inputs, {name: values}, batch.context)).nll)
    torch.testing.assert_close(together.nll, sum(alone))
    torch.manual_seed(1)
    stock = torch.as_tensor(TraceMeanField_ELBO().loss(model, guide, batch)) / model.num_data
    torch.testing.assert_close(stock, together.loss.detach(), check_dtype=False)


@pytest.mark.parametrize("likelihood", [tasks(sentiment=2.0), MultiLabel(3), MultiGaussian(2)], ids=lambda x: x.name)
def test_it_fits_predicts_saves_and_loads(likelihood: Any, tmp_path: Path) -> None:
    targets: Any = {"tasks": TASKS, "multi_label": LABELS, "multi_gaussian": NUMBERS}[likelihood.name]
    model, guide = pair(likelihood)
    plain = token_batch()
    data = Batch(plain.inputs, targets, plain.context)
    result = fit(
        model,
        guide,
        batches(data, 2),
        epochs=30,
        optimizer=lambda p: torch.optim.Adam(p, 0.03),
        validation=batches(data, 3, shuffle=False),
        kl_weight=0.01,
        progress=False,
    )
    assert result.best_value is not None
    assert result.best_value < result.history[0]["val_nll"] - 0.1
    options: Any = {"num_samples": S, "return_samples": True}
    found = predict(model, guide, data, **options)
    parts = predict(model, guide, [data[:2], data[2:]], chunk_size=4, **options)
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, bert()), data, **options)
    assert found.samples is not None
    torch.testing.assert_close(found.samples.mean(0), found.mean)
    for name in ("mean", "epistemic", "log_density", "samples"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name
        torch.testing.assert_close(getattr(found, name), getattr(parts, name), rtol=1e-4, atol=1e-5)
    for name, task in found.tasks.items():
        torch.testing.assert_close(parts[name].epistemic, task.epistemic, rtol=1e-3, atol=1e-5)
        assert parts[name].samples.shape == (S, *task.mean.shape)  # type: ignore[union-attr]
        torch.testing.assert_close(parts[name].samples.mean(0), task.mean, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_the_density_of_one_task_is_that_of_a_batch_with_its_targets() -> None:
    model, guide = pair(tasks())
    plain = token_batch()
    one = predict(model, guide, Batch(plain.inputs, {"sentiment": TASKS["sentiment"]}), num_samples=S)
    assert one.log_density is not None
    assert one.log_density[2] == 0
    probs = one["sentiment"].mean
    for row in (0, 1, 3, 4):
        torch.testing.assert_close(
            one.log_density[row], probs[row, TASKS["sentiment"][row]].log(), rtol=1e-4, atol=1e-5
        )


def test_a_task_nobody_labelled_counts_nothing() -> None:
    fn: Any = tasks().distribution(outputs(7).requires_grad_())
    nothing = {"sentiment": torch.full((B,), -100), "length": torch.full((B,), NAN)}
    found = fn.log_prob(fn.pack(TASKS | nothing))
    torch.testing.assert_close(found, fn.log_prob(fn.pack({"topics": TASKS["topics"]})))


def test_draws_of_all_tasks() -> None:
    f = outputs(7)
    fn: Any = tasks().distribution(f)
    drawn = fn.sample(torch.Size([4000]))
    assert drawn.shape == (4000, S, B, 5)
    torch.testing.assert_close((drawn[..., 0] == 2).float().mean(0), f[..., :3].softmax(-1)[..., 2], rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[..., 4].mean(0), torch.sigmoid(f[..., 6]), rtol=0, atol=0.05)
    assert fn.log_prob(drawn[0]).isfinite().all()


# batches of several tasks


def test_a_batch_slices_and_moves_the_targets_of_every_task() -> None:
    batch = Batch(token_batch().inputs, TASKS)
    rows = torch.tensor([4, 1])
    part: Any = batch[rows].targets
    assert {name: value.shape[0] for name, value in part.items()} == {"sentiment": 2, "length": 2, "topics": 2}
    torch.testing.assert_close(part["topics"], LABELS[rows], equal_nan=True)
    moved: Any = Batch({"input_ids": batch.inputs["input_ids"]}, TASKS).to("meta").targets
    assert {value.device.type for value in moved.values()} == {"meta"}
    assert batch.without_targets().targets is None


# mistakes


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda: Tasks({}), ("Tasks", "{}")),
        (lambda: Tasks({"a b": Bernoulli()}), ("'a b'",)),
        (lambda: Tasks({"items": Bernoulli()}), ("'items'",)),
        (lambda: Tasks({"all": tasks()}), ("'all'", "Tasks")),
        (lambda: Tasks({"a": Bernoulli()}, {"b": 1.0}), ("'b'", "a")),
        (lambda: Tasks({"a": Bernoulli()}, {"a": 0.0}), ("'a'", 0.0)),
        (lambda: MultiLabel(0), ("num_labels", 1, 0)),
        (lambda: MultiGaussian(2, target_scale=[1.0, -1.0]), ("target_scale", [1.0, -1.0])),
        (lambda: MultiGaussian(2, target_mean=[1.0]), ("target_mean", [1.0], 2)),
    ],
)
def test_likelihoods_that_cannot_be(build: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        build()


@pytest.mark.parametrize(
    ("likelihood", "targets", "facts"),
    [
        (tasks(), torch.zeros(5), ("sentiment", "a Tensor")),
        (tasks(), {"lenght": torch.zeros(5)}, ("'lenght'", "'length'")),
        (tasks(), {"sentiment": torch.tensor([0, 3])}, ("'sentiment'", "0 … 2", [3], "rows [1]")),
        (tasks(), {"length": torch.tensor([0, 3])}, ("'length'", "torch.int64", "(2,)")),
        (Categorical(3), {"sentiment": torch.tensor([0, 3])}, ("Categorical", ["sentiment"])),
        (MultiLabel(3), torch.zeros(5, 2), ("(B, 3)", "torch.float32", "(5, 2)")),
        (MultiLabel(2), torch.tensor([[0.0, 2.0]]), ([0, 1], [2.0])),
        (MultiLabel(2), torch.tensor([[0.0, 1.0], [NAN, NAN]]), ("rows [1]",)),
        (MultiGaussian(2), torch.tensor([[0.0, float("inf")]]), ("rows [0]",)),
        (MultiGaussian(2), torch.zeros(3, 2, dtype=torch.long), ("(B, 2)", "torch.int64", "(3, 2)")),
    ],
    ids=str,
)
def test_targets_that_do_not_fit(likelihood: Likelihood, targets: Any, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        likelihood.accept(targets)


def test_a_task_of_a_nameless_class_is_not_saved(tmp_path: Path) -> None:
    class Nameless(Gaussian):
        pass

    class Unregistered(Gaussian):
        name: ClassVar[str] = "unregistered"

    for kind in (Nameless, Unregistered):
        model, guide = pair(Tasks({"length": kind()}))
        with refuses(ConfigError, kind.__name__ if kind is Nameless else kind.name):
            save(tmp_path, model, guide)
    model, guide = pair(tasks(length=2.0))
    save(tmp_path, model, guide)
    config = json.loads((tmp_path / "adapter.json").read_text())["likelihood"]["config"]
    assert config["weights"] == {"length": 2.0}
    assert config["tasks"]["topics"] == {"name": "multi_label", "config": {"num_labels": 3}}
