"""Kronecker factors: exact where KFAC is, against dense blocks; and the Gaussian that holds them, against matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, Categorical, Tagging, load, predict, save
from bayes_adapters.distributions import DampedKronecker, RowsAndColumns, StructuredGaussian
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, KroneckerLaplace
from bayes_adapters.models import DiagonalCore, LoRA, StochasticDown
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from tests.helpers import Linear, bert, core_model, fill_B, pad, token_batch
from tests.refusals import refuses

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")
FIXED: dict[str, Any] = {"prior_precision": 1.0, "structure": "kronecker"}


def spectrum(size: int, kept: int) -> tuple[Tensor, Tensor]:
    vectors, _ = torch.linalg.qr(torch.randn(size, size).double())
    return vectors[:, :kept], torch.rand(kept).double() + 0.1


@pytest.mark.parametrize("kept", [(3, 4), (2, 1), (0, 0)])
def test_the_root_is_that_of_the_dense_covariance(kept: tuple[int, int]) -> None:
    torch.manual_seed(0)
    (rows, g), (columns, a) = spectrum(3, kept[0]), spectrum(4, kept[1])
    root = DampedKronecker(
        rows, g, columns, a, torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    )
    product = torch.kron((rows * g) @ rows.mT, (columns * a) @ columns.mT)
    covariance = 0.3**2 * torch.linalg.inv(0.7 * torch.eye(12).double() + product)
    dense = root.times(torch.eye(12).double())
    torch.testing.assert_close(dense @ dense.mT, covariance)
    torch.testing.assert_close(dense, dense.mT)
    torch.testing.assert_close(root.variance(), covariance.diagonal())
    torch.testing.assert_close(root.log_det(), 0.5 * torch.logdet(covariance))
    value = torch.randn(5, 12).double()
    torch.testing.assert_close(root.times(root.solve(value)), value)
    q, exact = StructuredGaussian(value[0], [root]), torch.distributions.MultivariateNormal(value[0], covariance)
    torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))
    torch.testing.assert_close(q.entropy(), exact.entropy())
    torch.testing.assert_close(q.sample((40_000,)).mT.cov(), covariance, rtol=0, atol=0.003)


def test_without_damping_it_is_a_matrix_normal() -> None:
    torch.manual_seed(0)
    (rows, g), (columns, a) = spectrum(3, 3), spectrum(4, 4)
    damped = DampedKronecker(rows, g, columns, a, torch.tensor(1e-8).double())
    lower = [torch.linalg.cholesky((v / e) @ v.mT)[None] for v, e in ((rows, g), (columns, a))]
    normal = RowsAndColumns(*lower)
    torch.testing.assert_close(damped.variance(), normal.variance(), rtol=1e-5, atol=0)
    torch.testing.assert_close(damped.log_det(), normal.log_det(), rtol=1e-5, atol=0)
    value = torch.randn(5, 12).double()
    squares = [root.solve(value).square().sum(1) for root in (damped, normal)]
    torch.testing.assert_close(*squares, rtol=1e-5, atol=0)


# where the factors are exact


def factors(likelihood: Any, x: Tensor, targets: Tensor) -> tuple[Any, Delta, Batch]:
    """A LoRA of one linear layer, 4 → 3, whose tokens are averaged."""
    torch.manual_seed(3)
    model = fill_B(LoRA(Linear(), likelihood, targets=["query"], rank=2))
    return model, Delta(model), Batch({"x": x}, targets)


def both(model: Any, guide: Any, batch: Batch, tokens: str | None = None, **options: Any) -> tuple[Any, Any]:
    """The Laplace approximation with Kronecker factors, and that with dense blocks."""
    own = {"tokens": tokens} if tokens else {}
    kronecker = laplace(model, guide, batch, **(FIXED | own | options))
    return kronecker, laplace(model, guide, batch, **(FIXED | options | {"structure": "block"}))


def assert_same(kronecker: Any, block: Any) -> None:
    """Precisions, log-determinants and evidence."""
    variance = [guide.joint().variance for _, guide, _ in (kronecker, block)]
    torch.testing.assert_close(*variance, rtol=1e-4, atol=1e-6)
    gaussian, dense = kronecker[1].gaussian, block[1].joint().covariance_matrix
    root = gaussian.projected(torch.eye(len(dense)))
    torch.testing.assert_close(root @ root.mT, dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kronecker[1].joint().entropy(), block[1].joint().entropy(), rtol=1e-4, atol=1e-4)
    for field in ("log_evidence", "determined", "shift", "kept"):
        assert getattr(kronecker[2], field) == pytest.approx(getattr(block[2], field), rel=1e-4), field


@pytest.mark.parametrize("tokens", ["reduce", "expand"])
def test_one_example_of_one_token(tokens: str) -> None:
    model, guide, batch = factors(Categorical(3), torch.randn(1, 1, 4), torch.tensor([1]))
    assert_same(*both(model, guide, batch, tokens=tokens))


def test_the_same_inputs_for_every_example_and_a_precision_by_the_evidence() -> None:
    x = torch.randn(1, 1, 4).expand(6, 1, 4)
    model, guide, batch = factors(Categorical(3), x, torch.arange(6) % 3)
    assert_same(*both(model, guide, batch, num_data=12))
    kronecker, block = both(model, guide, batch, prior_precision="evidence")
    assert kronecker[2].prior_precision == pytest.approx(block[2].prior_precision, rel=1e-3)


def test_tokens_that_are_averaged_reduce_exactly() -> None:
    model, guide, batch = factors(Categorical(3), torch.randn(1, 5, 4), torch.tensor([1]))
    reduced, block = both(model, guide, batch)
    assert_same(reduced, block)
    expanded, _ = both(model, guide, batch, tokens="expand")
    assert not torch.allclose(expanded[1].joint().variance, block[1].joint().variance, atol=1e-3)


def test_tokens_that_are_labelled_one_by_one_expand_exactly_and_the_others_do_not_count() -> None:
    x = torch.randn(1, 1, 4).expand(2, 5, 4).clone()
    labels = torch.arange(10).reshape(2, 5) % 3
    labels[0, 3:] = -100
    x[0, 3:] = 1e3
    model, guide, batch = factors(Tagging(3), x, labels)
    expanded, block = both(model, guide, batch)
    assert_same(expanded, block)


def test_a_vector_has_a_dense_block() -> None:
    """Entries of a diagonal core, and a head's bias."""
    torch.manual_seed(0)
    batch = Batch({"x": torch.randn(6, 2, 4)}, targets=torch.arange(6) % 3)
    prior = dist.Normal(0.0, 0.5)
    model = fill_B(DiagonalCore(Linear(), Categorical(3), targets=["query"], rank=2, prior=prior, num_data=6))
    kronecker, block = both(model, Delta(model), batch)
    assert_same(kronecker, block)
    lora, guide, batch = factors(Categorical(3), torch.randn(1, 1, 4), torch.tensor([1]))
    kronecker, block = (
        laplace(lora, guide, batch, structure=s, head=True, prior_precision=1.0) for s in ("kronecker", "block")
    )
    assert_same(kronecker, block)


# what it is on transformers


def bent(gaussian: Any) -> list[Tensor]:
    """The curvatures of every matrix."""
    return [root.curvature for root in gaussian().roots]


def test_neither_batches_nor_padding_count_and_it_is_saved(tmp_path: Path) -> None:
    batch = token_batch(5)
    model = core_model("global", num_data=5, rank=2)
    batch, guide = Batch(batch.inputs, batch.targets), Delta(model)
    model, whole, log = laplace(model, guide, batch, **FIXED)
    cut = [pad(batch[:3], 2), batch[3:]]
    _, parts, again = laplace(model, guide, cut, **FIXED)
    assert all(float(value.max()) > 0 for value in bent(whole.gaussian))
    for value, expected in zip(bent(parts.gaussian), bent(whole.gaussian), strict=True):
        torch.testing.assert_close(value.max(), expected.max(), rtol=1e-4, atol=0)
        torch.testing.assert_close(value.sum(), expected.sum(), rtol=1e-4, atol=0)
    assert again.log_evidence == pytest.approx(log.log_evidence, rel=1e-5)
    for linearised in (False, True):
        expected = predict(model, whole, batch, linearised=linearised)
        assert bool((expected.epistemic > 0).all())
    save(tmp_path, model, whole)
    loaded, guide_again = load(tmp_path, bert())
    assert isinstance(guide_again, KroneckerLaplace)
    torch.testing.assert_close(predict(loaded, guide_again, batch, linearised=True).mean, expected.mean)


def test_linearised_outputs_have_the_covariance_of_their_jacobian() -> None:
    """f + J (w − m) over many draws, J by differences of a model that is linear in its core."""
    torch.manual_seed(0)
    batch = Batch({"x": torch.randn(4, 1, 4)}, targets=torch.tensor([0.0, 1.0, 1.0, 0.0]))
    options: dict[str, Any] = {"targets": ["query"], "rank": 2, "num_data": 4, "prior": dist.Normal(0.0, 1.0)}
    model = core_model("global", backbone=Linear(), likelihood=Bernoulli(), **options)
    model, guide, _ = laplace(model, Delta(model), batch, **FIXED)

    def outputs(core: Tensor) -> Tensor:
        return pyro.poutine.condition(model, {"core.global": core.reshape(1, 2, 2)})(batch)[:, 0].detach()

    design = torch.stack([outputs(row) - outputs(torch.zeros(4)) for row in torch.eye(4)], -1)
    root = design @ guide.gaussian.projected(torch.eye(4))
    found = predict(model, guide, batch, num_samples=4000, linearised=True, return_samples=True).samples.logit()
    torch.testing.assert_close(found.mT.cov(), root @ root.mT, rtol=0.1, atol=0.03)


def test_fewer_directions_keep_the_largest() -> None:
    model, guide, batch = factors(Categorical(3), torch.randn(6, 1, 4), torch.arange(6) % 3)
    whole, _ = both(model, guide, batch)
    part, _ = both(model, guide, batch, rank=1)
    assert {(p, k) for _, _, p, k in part[1].gaussian.sides} == {(1, 1)}
    assert 0.3 < part[2].kept < whole[2].kept == pytest.approx(1.0)
    assert bool((part[1].joint().variance > whole[1].joint().variance - 1e-6).all())


def test_what_has_no_kronecker_form() -> None:
    model, guide, batch = factors(Categorical(3), torch.randn(1, 1, 4), torch.tensor([1]))
    with refuses(ConfigError, "tokens='reduce'", "'block'", "kronecker"):
        laplace(model, guide, batch, structure="block", tokens="reduce")
    with refuses(ConfigError, "tokens", "'sum'", "expand"):
        laplace(model, guide, batch, structure="kronecker", tokens="sum")
    with refuses(ConfigError, "'kronecker'", "block"):
        last_layer_laplace(model, guide, batch, structure="kronecker")
    with refuses(ConfigError, "'kronecker'", "GB", "max_gigabytes"):
        laplace(model, guide, batch, max_gigabytes=1e-9, **FIXED)
    prior = dist.Normal(torch.zeros(2, 4), torch.arange(8).reshape(2, 4) + 1.0)
    down = fill_B(
        StochasticDown(Linear(), Categorical(3), targets=["query"], rank=2, prior=lambda *_: prior, num_data=1)
    )
    with refuses(ConfigError, "'A.global'", "1", "8", "block"):
        laplace(down, Delta(down), batch, **FIXED)
    core = core_model("global", num_data=5, rank=2)
    with refuses(ConfigError, "kept", "4 matrices", "(2, 2)"):
        KroneckerLaplace(core, kept=[(1, 1)])
    with refuses(ConfigError, "no more directions", "(2, 2, 3, 1)"):
        KroneckerLaplace(core, kept=[(3, 1)] + 3 * [(1, 1)])
