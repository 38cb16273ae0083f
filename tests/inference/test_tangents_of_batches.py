"""The Jacobian of a batch from one forward pass is that of its examples one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Categorical, Tagging
from bayes_adapters.guides import Delta
from bayes_adapters.heads import JointLinear
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.models import DiagonalCore, StochasticCore, StochasticDown, StochasticFactors
from tests.helpers import bert, deberta_v3, fill_B, opt, swin, token_batch


def tokens() -> Batch:
    return token_batch(5).without_targets()


def images() -> Batch:
    torch.manual_seed(0)
    return Batch({"pixel_values": torch.randn(3, 3, 16, 16)})


def core(backbone: Any, likelihood: Any, **options: Any) -> Any:
    return StochasticCore(backbone, likelihood, granularity="global", num_data=5, rank=2, **options)


CASES: dict[str, tuple[Any, Any, bool]] = {
    "cores": (lambda: core(bert(), Categorical(3)), tokens, True),
    "labels of tokens": (lambda: core(bert(), Tagging(2)), tokens, True),
    "diagonal": (lambda: DiagonalCore(bert(), Bernoulli(), num_data=5, rank=2), tokens, True),
    "tokens in a row": (lambda: StochasticDown(opt(), Bernoulli(), targets=["fc1"], num_data=5, rank=2), tokens, True),
    "windows": (lambda: StochasticDown(swin(), Bernoulli(), targets=["q_proj"], num_data=5, rank=2), images, True),
    "the head, too": (lambda: core(bert(), Categorical(3), head=JointLinear()), tokens, True),
    "and for tokens": (lambda: core(bert(), Tagging(2), head=JointLinear()), tokens, True),
    "positions for all": (lambda: core(deberta_v3(), Bernoulli(), targets=["pos_query_proj"]), tokens, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_examples(case: str) -> None:
    make, data, at_once = CASES[case]
    torch.manual_seed(0)
    model, batch = fill_B(make()).eval(), data()
    tangent = Tangent(model, weight_mean(model, Delta(model)))
    outputs, jacobian = tangent._one_by_one(batch)
    passes: list[int] = []
    handle = model.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    found, rows = tangent.at(batch)
    handle.remove()
    assert len(passes) == (1 if at_once else 1 + batch.size)
    torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-6)
    largest = float(jacobian.abs().max())
    torch.testing.assert_close(rows, jacobian, rtol=1e-5, atol=1e-6 * max(largest, 1e-2))
    assert largest > 0


def test_both_factors_of_a_layer() -> None:
    torch.manual_seed(0)
    model = StochasticFactors(bert(), Bernoulli(), num_data=5, rank=2).eval()
    values = {site.name: torch.randn(site.shape) for site in model.sites}
    tangent = Tangent(model, values)
    torch.testing.assert_close(tangent.at(tokens())[1], tangent._one_by_one(tokens())[1], rtol=1e-5, atol=1e-6)
