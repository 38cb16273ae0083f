"""Boxes: the density by hand, the GIoU that is beside it and not in it, uncertainty per coordinate and its coverage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch import distributions as td

from bayes_adapters import ELBO, Batch, Categorical, Prediction, load, predict, save
from bayes_adapters.analysis.calibration import DeviationScaling
from bayes_adapters.analysis.conformal import ConformalIntervals
from bayes_adapters.data.boxes import giou, to_corners
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.likelihoods import BoundingBox, Tasks
from bayes_adapters.models import LoRA
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.information import averaged
from tests.refusals import refuses

S, B = 6, 5
NAN = float("nan")
BOXES = torch.tensor(
    [[0.5, 0.5, 0.5, 0.5], [0.2, 0.3, 0.2, 0.4], [0.9, 0.9, 0.2, 0.2], [0.5, 0.4, 1.0, 0.1], [0.7, 0.2, 0.1, 0.1]]
)


def outputs(k: int = 4) -> Tensor:
    return torch.randn(S, B, k, generator=torch.Generator().manual_seed(3))


def pair(likelihood: Any) -> tuple[Any, Any]:
    model = core_model("token", likelihood=likelihood, backbone=bert(1))
    return model, MeanField(model, init_scale=0.5)


@pytest.mark.parametrize("scale", ["all", "coordinate", "example"])
def test_the_density_is_a_laplace_about_the_sigmoid(scale: str) -> None:
    likelihood = BoundingBox(scale, init_scale=0.2)
    f = outputs(likelihood.num_outputs)
    b = torch.full((4,), 0.2)
    if scale == "example":
        b = 1e-4 + 0.2 * torch.log1p((torch.e - 1) * f[..., 4:].exp())
    elif scale == "coordinate":
        with torch.no_grad():
            likelihood.log_scale.copy_(torch.tensor([-1.0, -2.0, -3.0, 0.5]))
        b = torch.tensor([-1.0, -2.0, -3.0, 0.5]).exp()
    fn: Any = likelihood.distribution(f)
    by_hand = -((BOXES - torch.sigmoid(f[..., :4])).abs() / b + (2 * b).log()).sum(-1)
    torch.testing.assert_close(fn.log_prob(BOXES).detach(), by_hand)
    torch.testing.assert_close(likelihood.log_density(fn, BOXES).detach(), by_hand)
    sides = td.Laplace(torch.sigmoid(f[..., :4]), b)
    found = averaged(likelihood, f)
    torch.testing.assert_close(found.aleatoric, sides.entropy().mean(0).expand(B, 4), rtol=1e-4, atol=1e-5)
    expected = sides.variance.mean(0) + sides.mean.var(0, correction=0)
    torch.testing.assert_close(found.variance, expected, rtol=1e-4, atol=1e-6)
    assert found.mean.shape == found.total.shape == found.epistemic.shape == (B, 4)
    assert found.summed().total.shape == (B,)
    torch.testing.assert_close(to_corners(found.mean), to_corners(sides.mean).mean(0))


def test_of_one_draw_the_total_is_the_entropy_of_a_laplace() -> None:
    likelihood = BoundingBox(init_scale=0.3)
    found = averaged(likelihood, outputs()[:1])
    expected = td.Laplace(0.0, torch.tensor(0.3)).entropy().expand(B, 4)
    torch.testing.assert_close(found.total, expected)
    assert not found.epistemic.any()


def test_the_potential_is_in_the_elbo_and_in_no_prediction() -> None:
    plain, pulled, f = BoundingBox(), BoundingBox(giou_weight=2.5), outputs().requires_grad_()
    one, other = plain.distribution(f), pulled.distribution(f)
    psi = 2.5 * (1 - giou(torch.sigmoid(f), BOXES))
    assert (psi > 0).all()
    torch.testing.assert_close(other.log_prob(BOXES), one.log_prob(BOXES) - psi)
    torch.testing.assert_close(pulled.log_density(other, BOXES), plain.log_density(one, BOXES))
    (slope,) = torch.autograd.grad((other.log_prob(BOXES) - one.log_prob(BOXES)).sum(), f, retain_graph=True)
    (by_hand,) = torch.autograd.grad(-psi.sum(), f)
    torch.testing.assert_close(slope, by_hand, rtol=1e-4, atol=1e-5)
    wide: Any = other.expand(torch.Size([2, S, B]))
    torch.testing.assert_close(wide.log_prob(BOXES)[1], other.log_prob(BOXES))
    assert wide.sample().shape == (2, S, B, 4)


def test_the_elbo_by_hand_and_pyros_own() -> None:
    plain = token_batch()
    batch = Batch(plain.inputs, BOXES, plain.context)
    found = {}
    for weight in (0.0, 3.0):
        model, guide = pair(BoundingBox(giou_weight=weight))
        torch.manual_seed(1)
        terms = ELBO(model, guide).terms(batch)
        torch.manual_seed(1)
        stock = torch.as_tensor(TraceMeanField_ELBO().loss(model, guide, batch)) / model.num_data
        torch.testing.assert_close(stock, terms.loss.detach(), check_dtype=False)
        found[weight] = terms.nll.detach(), predict(model, guide, batch, num_samples=3)
        torch.manual_seed(1)
        guide(batch)
        mean = guide.trace.nodes["obs"]["fn"].mean
    (low, one), (high, other) = found[0.0], found[3.0]
    torch.testing.assert_close(high - low, 3.0 * (1 - giou(mean, BOXES)).mean().detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(one.log_density, other.log_density)  # type: ignore[arg-type]


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    likelihood = BoundingBox("example", giou_weight=1.0)
    model = LoRA(bert(1), likelihood, rank=2)
    guide, plain = Delta(model), token_batch()
    batch = Batch(plain.inputs, BOXES, plain.context)
    before = predict(model, guide, batch)
    optimizer: Any = lambda p: torch.optim.Adam(p, 0.05)  # noqa: E731
    fit(model, guide, batch, epochs=30, optimizer=optimizer, progress=False)
    found = predict(model, guide, batch, num_samples=4, return_samples=True)
    assert giou(found.mean, BOXES).mean() > giou(before.mean, BOXES).mean() + 0.3
    assert found.log_density.mean() > before.log_density.mean() + 2  # type: ignore[union-attr]
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, bert(1)), batch)
    assert torch.equal(found.mean, again.mean)
    assert torch.equal(found.log_density, again.log_density)  # type: ignore[arg-type]
    assert found.samples is not None
    assert found.samples.shape == (4, B, 4)


def test_among_tasks_an_example_without_a_box_counts_nothing_and_the_potential_stays_out_of_densities() -> None:
    parts: dict[str, Any] = {"box": BoundingBox(giou_weight=2.0), "kind": Categorical(3)}
    both, f = Tasks(parts, {"box": 0.5}), outputs(7)
    targets = {"box": BOXES.clone(), "kind": torch.tensor([0, 1, 2, -100, 0])}
    targets["box"][1] = NAN
    both.accept(targets)
    fn: Any = both.distribution(f)
    box = parts["box"].distribution(f[..., :4])
    kind = td.Categorical(logits=f[..., 4:]).log_prob(targets["kind"].clamp_min(0))
    known, labelled = torch.arange(B) != 1, torch.arange(B) != 3
    density = torch.where(known, parts["box"].log_density(box, BOXES), 0.0)
    scored = torch.where(known, box.log_prob(BOXES), 0.0)
    torch.testing.assert_close(both.log_density(fn, targets), density + kind * labelled)
    torch.testing.assert_close(fn.log_prob(fn.pack(targets)), 0.5 * scored + kind * labelled)


def test_intervals_per_coordinate_and_boxes_cover() -> None:
    """Boxes of which the model knows the scale up to a factor: what calibration finds holds on new ones."""
    rng = torch.Generator().manual_seed(0)
    held, new = 200, 2000
    b = 0.01 + 0.03 * torch.rand(held + new, 4, generator=rng)
    centre = 0.4 + 0.2 * torch.rand(held + new, 4, generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = td.Laplace(centre, b).sample()
    likelihood = BoundingBox("example", init_scale=0.02)
    f = torch.cat(
        [torch.logit(centre), torch.log(torch.expm1((b / 2 - 1e-4) / 0.02)) - torch.log(torch.tensor(torch.e - 1))], -1
    )
    answer = averaged(likelihood, f[None])  # half of the true scale
    torch.testing.assert_close(answer.variance, 2 * (b / 2).square(), rtol=1e-3, atol=1e-8)

    def part(rows: slice, columns: Any = slice(None)) -> Prediction:
        names = ("mean", "total", "aleatoric", "epistemic", "variance")
        return replace(
            answer,
            aleatoric_variance=None,
            epistemic_variance=None,
            **{name: getattr(answer, name)[rows, columns] for name in names},
        )

    scaling = DeviationScaling.fit(part(slice(held)), y[:held])
    torch.testing.assert_close(
        scaling(part(slice(held, None))).variance.sqrt().mean(), (2**0.5 * b[held:]).mean(), rtol=0.1, atol=0
    )  # type: ignore[union-attr]
    inside = []
    for k in range(4):
        intervals = ConformalIntervals.fit(part(slice(held), k), y[:held, k], alpha=0.05)
        low, high = intervals.sets(part(slice(held, None), k)).unbind(-1)
        inside.append((y[held:, k] >= low) & (y[held:, k] <= high))
    each = torch.stack(inside).double()
    assert (each.mean(1) - 0.95).abs().max() < 0.04  # 4 standard errors of n = 200
    assert 0.80 <= each.prod(0).mean() < 0.9  # a box is four numbers: at least 1 − 4α of them, here .95⁴
    ends = ConformalIntervals.fit(part(slice(held)), y[:held], alpha=0.05).sets(part(slice(held, None)))
    assert ends.shape == (new, 4, 2)
    together = ((y[held:] >= ends[..., 0]) & (y[held:] <= ends[..., 1])).all(1).double().mean()
    assert (together - 0.95).abs() < 0.04


@pytest.mark.parametrize(
    ("targets", "facts"),
    [
        (torch.tensor([[30.0, 40.0, 10.0, 10.0]]), ("rows [0]", [[30.0, 40.0, 10.0, 10.0]], "from_corners")),
        (torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.9, 0.9]]), ("rows [1]", "outside")),
        (torch.tensor([[0.5, 0.5, -0.2, 0.2]]), ("rows [0]", "x2 < x1")),
        (torch.tensor([[0.5, 0.5, 0.2, 0.0]]), ("rows [0]", "empty")),
        (torch.tensor([[0.5, NAN, 0.2, 0.2]]), ("rows [0]", "NaN")),
        (torch.tensor([0.5, 0.5, 0.2, 0.2]), ("(B, 4)", "(4,)")),
        (torch.tensor([[1, 2, 3, 4]]), ("torch.int64", "(1, 4)", "from_corners")),
    ],
    ids=["pixels", "outside", "inverted", "empty", "unknown", "shape", "type"],
)
def test_what_is_no_box(targets: Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        BoundingBox().accept(targets)


def test_a_box_that_rounding_put_a_hair_outside_is_one() -> None:
    BoundingBox().accept(torch.tensor([[0.5, 0.5, 1.00005, 1.0]]))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"scale": "coordinates"}, ("scale", "'coordinates'", "coordinate")),
        ({"init_scale": 0.0}, ("init_scale", 0.0)),
        ({"giou_weight": -1.0}, ("giou_weight", -1.0)),
    ],
)
def test_options_out_of_range(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        BoundingBox(**options)
