"""The product beside a linear head: at the start it is that head, and only a product interacts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import AdapterModel, Batch
from bayes_adapters.guides import Delta
from bayes_adapters.inference.predictive import predict
from examples.studies.wander.model import Combine, combined
from examples.studies.wander.training import gates, take_over
from examples.studies.wander.variants import VARIANTS, Variant
from tests.studies.wander.parts import ROWS, Product

PROBLEM = Product("product")


def built(variant: Variant, gate: float | None = None) -> tuple[AdapterModel, Delta]:
    torch.manual_seed(3)
    model = variant.build(PROBLEM, PROBLEM.encoders(True))
    for own in gates(model):
        own.data.fill_(variant.gate if gate is None else gate)
    return model, Delta(model)


def outputs(pair: tuple[AdapterModel, Delta], values: dict[str, Tensor], **inputs: Any) -> Tensor:
    batch = Batch({f"{n}.signal": v for n, v in values.items()} | inputs)
    return torch.logit(predict(*pair, [batch], num_samples=1).probs.double())


def test_with_the_gate_closed_it_is_the_linear_head_that_it_took_over() -> None:
    linear, beside = built(VARIANTS["linear"]), built(VARIANTS["beside"])
    for null in linear[0].null.values():  # type: ignore[union-attr]
        null.data.normal_()
    take_over(beside[0], linear[0])
    values, _ = PROBLEM.made(0)
    present = {"stream1.present": torch.arange(ROWS) % 3 > 0}
    expected = outputs(linear, values, **present)
    torch.testing.assert_close(outputs(beside, values, **present), expected, rtol=0, atol=1e-5)
    gates(beside[0])[0].data.fill_(1.0)
    assert not torch.allclose(outputs(beside, values), outputs(linear, values), atol=1e-2)


@pytest.mark.parametrize("name", ["sum", "beside", "pairs", "linear"])
def test_only_products_interact(name: str) -> None:
    """The mixed difference ``f(a, b) − f(a, b') − f(a', b) + f(a', b')`` is 0 exactly where f is a sum over streams."""
    pair = built(VARIANTS[name], gate=3.0)
    values, _ = PROBLEM.made(1)
    other, _ = PROBLEM.made(2)
    f = {
        (i, j): outputs(pair, {"stream0": (values, other)[i]["stream0"], "stream1": (values, other)[j]["stream1"]})
        for i in (0, 1)
        for j in (0, 1)
    }
    mixed = (f[0, 0] - f[0, 1] - f[1, 0] + f[1, 1]).abs().max()
    assert bool(mixed < 1e-4) is (name in ("sum", "linear"))


def test_pairs_are_the_sum_over_pairs_and_everything_keeps_its_scale() -> None:
    torch.manual_seed(0)
    factors = {name: torch.randn(300, 2, 4, 8, dtype=torch.float64) for name in "abcd"}
    a, b, c, d = factors.values()
    by_hand = {
        Combine.PRODUCT: a * b * c * d,
        Combine.PAIRS: a * b + a * c + a * d + b * c + b * d + c * d,
        Combine.SUM: a + b + c + d,
    }
    for how, expected in by_hand.items():
        torch.testing.assert_close(combined(factors, how, normalise=False), expected.sum(1))
        assert abs(float(combined(factors, how, normalise=True).square().mean()) - 1) < 0.3


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.encoded])
def test_every_variant_on_encoders_that_have_run_answers(name: str) -> None:
    values, _ = PROBLEM.made(0)
    assert outputs(built(VARIANTS[name]), values).shape == (ROWS,)


def test_the_head_reads_what_a_variant_says() -> None:
    def width(name: str) -> int:
        return int(next(p for n, p in built(VARIANTS[name])[0].named_parameters() if n == "head.weight").shape[1])

    assert [width(n) for n in ("linear", "beside", "product-only", "beside-tokens", "beside-width-16", "released")] == [
        128, 192, 64, 128 + 8 * 64, 128 + 16, 64
    ]  # fmt: skip
