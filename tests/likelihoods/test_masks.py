"""Masks: pixels by hand, interpolation at the cells' centres, padding that counts nowhere, and what a pixel weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from bayes_adapters import ELBO, Batch, load, predict, save
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.likelihoods import BoundingBox, Masks, Tasks
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.training import fit
from tests.helpers import fill_B, vit
from tests.information import of_classes, of_labels
from tests.refusals import refuses

S, B, GRID, SIZE = 3, 4, (2, 2), (8, 8)
SHAPE = (B, *SIZE)


def outputs(tokens: int = 5, k: int = 1) -> Tensor:
    return torch.randn(S, B, tokens, k, generator=torch.Generator().manual_seed(3))


def labels(classes: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    found = torch.randint(classes, shape, generator=torch.Generator().manual_seed(4))
    found[0, :2] = -100
    return found


def between(cells: Tensor, size: int) -> Tensor:
    """Values of ``size`` points along the first axis, linear between the cells' centres: by hand, one after another."""
    n = len(cells)
    rows = []
    for i in range(size):
        place = min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
        low = min(int(place), n - 2) if n > 1 else 0
        share = place - low
        rows.append((1 - share) * cells[low] + share * cells[min(low + 1, n - 1)])
    return torch.stack(rows)


@torch.no_grad()
def averaged(likelihood: Masks, f: Tensor, real: Tensor | None = None) -> Any:
    return likelihood.predict(likelihood.summarise(likelihood.of_tokens(f, real)), len(f))


@pytest.mark.parametrize(("classes", "detail"), [(1, 1), (3, 1), (2, 2)])
def test_pixels_by_hand(classes: int, detail: int) -> None:
    likelihood = Masks(GRID, SIZE, classes, skip=1, detail=detail)
    f, y = outputs(k=likelihood.num_outputs), labels(max(classes, 2))
    fn: Any = likelihood.distribution(f)
    cells = f[..., 1:, :].reshape(S, B, 2, 2, classes, detail, detail)
    grid = torch.zeros(S, B, 2 * detail, 2 * detail, classes)
    for i in range(2 * detail):
        for j in range(2 * detail):
            grid[:, :, i, j] = cells[:, :, i // detail, j // detail, :, i % detail, j % detail]
    along = between(grid.movedim(2, 0), SIZE[0])  # (H, S, B, w, C)
    pixels = between(along.movedim(3, 0), SIZE[1]).permute(2, 3, 1, 0, 4)  # from (W, H, S, B, C)
    torch.testing.assert_close(fn.base_dist.logits, pixels, rtol=1e-4, atol=1e-5)
    known = y != -100
    each: Any = td.Bernoulli(logits=pixels[..., 0]) if classes == 1 else td.Categorical(logits=pixels)
    score = each.log_prob(y.clamp_min(0).float() if classes == 1 else y.clamp_min(0))
    by_hand = (score * known).sum((-2, -1))
    torch.testing.assert_close(likelihood.log_density(fn, y), by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fn.log_prob(y), (2 * detail) ** 2 / 64 * by_hand, rtol=1e-4, atol=1e-4)
    found = averaged(likelihood, f)
    assert found.mean.shape == (SHAPE if classes == 1 else (*SHAPE, classes))
    expected = of_labels(each.probs) if classes == 1 else of_classes(each.probs)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name).double(), value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(likelihood.draw_mean(fn).mean(0), found.mean)
    drawn = fn.expand(torch.Size([2, S, B])).sample()
    assert drawn.shape == (2, S, *SHAPE)
    assert fn.log_prob(drawn).shape == (2, S, B)


def test_what_a_pixel_weighs_does_not_depend_on_the_resolution() -> None:
    f = outputs(4)
    scores = {}
    for side in (4, 8, 16):
        y = torch.zeros(B, side, side, dtype=torch.long)
        y[:, : side // 2] = 1
        for unit in ("cell", "pixel", "mask"):
            likelihood = Masks(GRID, (side, side), unit=unit)
            scores[unit, side] = likelihood.distribution(0 * f + 1).log_prob(y)
    torch.testing.assert_close(scores["cell", 4], scores["cell", 16])
    torch.testing.assert_close(scores["mask", 4], scores["mask", 16])
    torch.testing.assert_close(4 * scores["pixel", 8], scores["pixel", 16])
    torch.testing.assert_close(scores["cell", 8], 4 * scores["mask", 8])


def test_the_weight_gives_a_posterior_its_width_where_cells_err_together() -> None:
    """A mean of cell labels under flat prior: with w = 1/n per cell the curvature is that of independent cells."""
    likelihood = Masks((4, 4), (16, 16))
    bias = torch.zeros((), requires_grad=True)
    cells = torch.randint(2, (400, 4, 4), generator=torch.Generator().manual_seed(0))
    y = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    (slope,) = torch.autograd.grad(
        likelihood.distribution(bias.expand(400, 16, 1)).log_prob(y).sum(), bias, create_graph=True
    )
    (curvature,) = torch.autograd.grad(slope, bias)
    spread = (cells.flatten(1).double() - 0.5).sum(1).square().mean()  # of one mask's score, as weighted
    assert -curvature.item() / 400 == pytest.approx(16 * 0.25)
    assert spread.item() == pytest.approx(16 * 0.25, rel=0.25)


def test_padding_counts_nowhere() -> None:
    likelihood, f, y = Masks((2, 3), (4, 6)), outputs(6), labels(shape=(B, 4, 6))
    real = torch.ones(B, 6, dtype=torch.bool)
    real[1, 2] = real[1, 5] = real[2, 3:] = False  # a column, a row
    other, labelled = f.clone(), y.clone()
    other[:, ~real] = float("nan")
    labelled[1, :, 4:] = 1 - labelled[1, :, 4:]
    labelled[2, 2:] = 1 - labelled[2, 2:]
    found, again = (likelihood.of_tokens(x, real) for x in (f, other))
    whole = likelihood.of_tokens(f, None)
    torch.testing.assert_close(found.log_prob(y), again.log_prob(labelled))
    torch.testing.assert_close(found.log_prob(y)[:, [0, 3]], whole.log_prob(y)[:, [0, 3]])
    # row 2 has the upper half only, as an image of one row of patches has
    upper = Masks((1, 3), (2, 6)).of_tokens(f[:, 2:3, :3], None)
    torch.testing.assert_close(likelihood.log_density(found, y)[:, 2:3], upper.base_dist.log_prob(y[2:3, :2]))
    answer = averaged(likelihood, other, real)
    for name in ("mean", "total", "epistemic"):
        assert (getattr(answer, name)[2, 2:] == 0).all()
        assert (getattr(answer, name)[2, :2] > 0).all()
    drawn: Any = found.sample()  # type: ignore[no-untyped-call]
    assert (drawn[:, 1, :, 4:] == -100).all()
    assert (drawn[:, 0] >= 0).all()


def test_labels_that_are_missing_have_no_gradient() -> None:
    f = outputs(4).requires_grad_()
    y = torch.full(SHAPE, -100)
    y[1] = labels()[1]
    for weight in (0.0, 2.0):
        (slope,) = torch.autograd.grad(Masks(GRID, SIZE, dice_weight=weight).distribution(f).log_prob(y).sum(), f)
        assert slope.isfinite().all()
        assert (slope[:, [0, 2, 3]] == 0).all()
        assert (slope[:, 1] != 0).any()


@pytest.mark.parametrize("classes", [1, 3])
def test_the_dice_term_by_hand(classes: int) -> None:
    f, y = outputs(4, classes), labels(max(classes, 2))
    plain, pulled = (Masks(GRID, SIZE, classes, dice_weight=v) for v in (0.0, 2.0))
    one, other = plain.distribution(f), pulled.distribution(f)
    p: Any = one.mean if classes > 1 else one.mean[..., None]
    expected = torch.zeros(S, B)
    known = y != -100
    for s in range(S):
        for b in range(B):
            dice = []
            for c in range(classes):
                q, wanted = p[s, b, ..., c][known[b]], (y[b] == (c if classes > 1 else 1))[known[b]].float()
                dice.append((2 * (q * wanted).sum() + 1) / (q.sum() + wanted.sum() + 1))
            expected[s, b] = 2 * (1 - sum(dice) / classes)
    torch.testing.assert_close(one.log_prob(y) - other.log_prob(y), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.log_density(one, y), pulled.log_density(other, y))


def quadrants(seed: int = 0) -> Batch:
    """Images of which one quarter, a patch, is bright; the mask is that quarter."""
    rng = torch.Generator().manual_seed(seed)
    where = torch.arange(12) % 4
    y = torch.zeros(12, 16, 16, dtype=torch.long)
    for row, place in enumerate(where.tolist()):
        i, j = 8 * (place // 2), 8 * (place % 2)
        y[row, i : i + 8, j : j + 8] = 1
    pixels = 0.1 * torch.randn(12, 3, 16, 16, generator=rng) + 2.0 * y[:, None]
    return Batch({"pixel_values": pixels}, y)


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    likelihood = Masks(GRID, (16, 16), skip=1, dice_weight=1.0)
    model = StochasticCore(vit(1), likelihood, targets="all-linear", granularity="global", rank=2, num_data=12)
    guide, batch = MeanField(model), quadrants()
    optimizer: Any = lambda p: torch.optim.Adam(p, 0.05)  # noqa: E731
    fit(model, guide, batch, epochs=100, optimizer=optimizer, kl_weight=0.01, progress=False)
    found = predict(model, guide, batch, num_samples=4, return_samples=True, chunk_size=3)
    parts = predict(model, guide, [batch[:5], batch[5:]], num_samples=4)
    assert found.samples is not None
    assert found.samples.shape == (4, 12, 16, 16)
    torch.testing.assert_close(found.mean, parts.mean, rtol=1e-4, atol=1e-5)
    assert ((found.mean > 0.5) == (batch.targets == 1)).double().mean() > 0.82  # .75 without a mask
    targets: Any = batch.targets
    p = torch.where(targets == 1, found.samples, 1 - found.samples).double()
    torch.testing.assert_close(
        found.log_density.double(), p.log().sum((2, 3)).logsumexp(0) - torch.tensor(4.0).log(), rtol=1e-3, atol=1e-2
    )  # type: ignore[union-attr]
    half = targets.clone()
    half[:, :, :8] = -100
    assert TemperatureScaling.fit(found, half).temperature > 0
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, vit(1)), batch, num_samples=4)
    assert torch.equal(again.mean, predict(model, guide, batch, num_samples=4).mean)


def test_box_and_mask_of_one_model() -> None:
    likelihood = Tasks({"box": BoundingBox(giou_weight=1.0), "mask": Masks(GRID, (16, 16), skip=1, dice_weight=1.0)})
    model = fill_B(LoRA(vit(1), likelihood, targets="all-linear", rank=2))
    batch = quadrants()
    boxes = torch.full((12, 4), 0.5)
    boxes[3], targets = float("nan"), {"box": boxes, "mask": batch.targets}
    targets["mask"][2] = -100
    guide, both = Delta(model), Batch(batch.inputs, targets)
    loss = ELBO(model, guide)(both)
    loss.backward()
    assert loss.isfinite()
    found = predict(model, guide, both, mean_only=True)
    assert found["mask"].mean.shape == (12, 16, 16)
    assert found["box"].mean.shape == (12, 4)
    each = [
        predict(model, guide, Batch(batch.inputs, {name: targets[name]}), mean_only=True).log_density
        for name in targets
    ]
    torch.testing.assert_close(found.log_density, each[0] + each[1])  # type: ignore[operator]
    assert each[0][3] == each[1][2] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("targets", "facts"),
    [
        (torch.zeros(2, 8, 9, dtype=torch.long), ("(B, 8, 8)", "(2, 8, 9)", "nearest-exact")),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), ("(2, 1, 8, 8)", "masks[:, 0]")),
        (torch.zeros(2, 8, 8), ("torch.float32", "(masks > 0.5).long()")),
        (torch.full((2, 8, 8), 255), ("0 … 1", -100, [255])),
        (torch.full((2, 8, 8), -1), ("0 … 1", [-1])),
        (torch.full((2, 8, 8), 255, dtype=torch.uint8), ("0 … 1", [255])),
    ],
    ids=["size", "channel", "type", "255", "minus", "bytes"],
)
def test_what_is_no_mask(targets: Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        Masks(GRID, SIZE).accept(targets)


def test_sizes_that_do_not_fit() -> None:
    for options, facts in (
        ({"grid": (2, 0), "size": SIZE}, ("grid", "(2, 0)")),
        ({"grid": GRID, "size": (8,)}, ("size", "(8,)")),
        ({"grid": (4, 4), "size": SIZE, "detail": 3}, ("(8, 8)", "12 × 12")),
        ({"grid": GRID, "size": SIZE, "skip": -1}, ("skip", -1)),
        ({"grid": GRID, "size": SIZE, "unit": "patch"}, ("unit", "'patch'", "cell")),
        ({"grid": GRID, "size": SIZE, "dice_weight": -1.0}, ("dice_weight", -1.0)),
    ):
        with refuses(ConfigError, *facts):
            Masks(**options)  # type: ignore[arg-type]
    with refuses(ConfigError, "skip=0", 4, 5):
        Masks(GRID, SIZE).distribution(outputs(5))
