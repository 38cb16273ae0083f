"""Training-free Bayesianization: the rotation, the noise it promises, and the search for its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import (
    ELBO,
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    adapted_layers,
    load,
    predict,
    save,
)
from bayes_adapters._noise_search import Criterion, Search
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, MeanField, TrainingFree
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore, StochasticDown
from bayes_adapters.peft_files import from_peft, to_peft
from bayes_adapters.training import fit
from bayes_adapters.training_free import bayesianise, rotate
from tests.helpers import CONTEXT, WIDTH, bert, fill_B, gpt2, token_batch

RANK = 3


def lora(backbone: nn.Module | None = None, likelihood: Any = None, **options: Any) -> LoRA:
    settings = {"rank": RANK, "dropout": 0.1} | options
    model = fill_B(LoRA(backbone or bert(), likelihood or Bernoulli(), **settings))
    with torch.no_grad():
        model.head.weight.mul_(6)
    return model  # type: ignore[return-value]


def batch(size: int = 24, classes: int = 2) -> Batch:
    targets = torch.arange(size) % classes
    return token_batch(size, targets=targets.float() if classes == 2 else targets)


def make(model: LoRA, **options: Any) -> Any:
    return bayesianise(model, Delta(model), batch(), **{"tolerance": 0.02, "num_samples": 4, "iterations": 4} | options)


def draws(guide: TrainingFree, count: int) -> dict[str, Tensor]:
    """Path → ΔW = B'A' before the scale, shape (count, d_out, d_in)."""
    with torch.no_grad(), pyro.plate("samples", count, dim=-2):
        guide(token_batch(1))
    found: dict[str, Tensor] = {}
    for site in guide.model.sites:
        values = guide.trace.nodes[site.name]["value"].reshape(count, *site.shape)
        for place, path in enumerate(site.layers):
            found[path] = adapted_layers(guide.model.backbone)[path].lora_B.detach() @ values[:, place]
    return found


def products(model: LoRA) -> dict[str, Tensor]:
    return {p: (la.lora_B @ la.lora_A).detach() for p, la in adapted_layers(model.backbone).items()}


def basis(B: Tensor) -> Tensor:
    """U of the singular value decomposition of B."""
    return torch.linalg.svd(B.detach(), full_matrices=False)[0]


def spread(U: Tensor, deviation: Tensor) -> Tensor:
    """Standard deviation over draws (S, d_out, d_in) in the basis U: shape (r, d_in)."""
    return torch.einsum("mr,smd->srd", U, deviation).std(0)


# the rotation


@pytest.mark.parametrize(("d_out", "rank"), [(16, 3), (5, 5), (2, 4)])
def test_rotation_keeps_the_product_and_makes_B_orthogonal(d_out: int, rank: int) -> None:
    A, B = torch.randn(rank, 7), torch.randn(d_out, rank)
    down, up = rotate(A, B)
    assert (down.shape, up.shape) == (A.shape, B.shape)
    torch.testing.assert_close(up @ down, B @ A, rtol=0, atol=1e-6)
    square = up.mT @ up
    torch.testing.assert_close(square, square.diagonal().diag(), rtol=0, atol=1e-5)
    lengths = torch.linalg.vector_norm(up, dim=0)
    torch.testing.assert_close(lengths[: min(d_out, rank)], torch.linalg.svdvals(B))
    assert bool((lengths[min(d_out, rank) :] == 0).all())


@pytest.mark.parametrize("backbone", [bert, gpt2])
def test_the_mean_is_unchanged(backbone: Any) -> None:
    targets = ["query", "value"] if backbone is bert else ["c_attn", "c_fc"]
    model = lora(backbone(), Categorical(3), targets=targets, pooling="last")
    guide = Delta(model)
    data = batch(classes=3)
    before = products(model)
    new, posterior, _ = bayesianise(model, guide, data, tolerance=0.02, num_samples=4)
    for site in new.sites:
        for place, path in enumerate(site.layers):
            found = (
                adapted_layers(new.backbone)[path].lora_B
                @ posterior.get_buffer("mean-" + site.name.replace(".", "-"))[place]
            )
            torch.testing.assert_close(found, before[path], rtol=0, atol=1e-6)
    expected, found = predict(model, guide, data, mean_only=True), predict(new, posterior, data, mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert found.probs.std() > 0.05, "predictions that are all alike would agree by themselves"


# the noise


def test_noise_has_one_size_in_the_column_space_of_B() -> None:
    model = lora()
    before = products(model)
    left = {
        p: torch.linalg.svd(la.lora_B.detach(), full_matrices=False)[0]
        for p, la in adapted_layers(model.backbone).items()
    }
    _, guide, _ = make(model)
    guide.rescale(0.05)
    for path, found in draws(guide, 4000).items():
        U = left[path]
        deviation = found - before[path]
        coordinates = torch.einsum("mr,smd->srd", U, deviation)
        size = spread(U, deviation)
        torch.testing.assert_close(size, torch.full_like(size, 0.05), rtol=0.06, atol=0)
        torch.testing.assert_close(size.mean(), torch.tensor(0.05), rtol=0.005, atol=0)
        outside = deviation - torch.einsum("mr,srd->smd", U, coordinates)
        assert outside.abs().max() < 1e-5, "no noise outside the column space"
        # Var(ΔW) = σ² U Uᵀ for each input column
        columns = deviation.permute(0, 2, 1).reshape(-1, deviation.shape[1])
        torch.testing.assert_close(columns.mT @ columns / len(columns), 0.05**2 * U @ U.mT, rtol=0, atol=1e-4)
        assert (found.mean(0) - before[path]).abs().max() < 0.005


def test_noise_in_the_original_coordinates_needs_the_rotation() -> None:
    """B (A + V diag(σ/d) ε) has the promised spread; the B (A + diag(σ/d) ε) of some re-implementations has not."""
    torch.manual_seed(2)
    A, B = torch.randn(RANK, 6), torch.randn(10, RANK) * torch.tensor([3.0, 1.0, 0.2])
    B = B @ torch.linalg.qr(torch.randn(RANK, RANK))[0]  # V is far from the identity
    U, d, right = torch.linalg.svd(B, full_matrices=False)
    noise = torch.randn(8000, RANK, 6)
    small = (0.05 / d)[:, None] * noise

    def size(product: Tensor) -> Tensor:
        return spread(U, product - B @ A)

    flat = torch.full((RANK, 6), 0.05)
    torch.testing.assert_close(size(B @ (A + right.mT @ small)), flat, rtol=0.06, atol=0)
    wrong = size(B @ (A + small))
    assert (wrong / flat - 1).abs().max() > 1, wrong
    down, up = rotate(A, B)
    ours = (0.05 / torch.linalg.vector_norm(up, dim=0))[:, None] * noise
    torch.testing.assert_close(size(up @ (down + ours)), flat, rtol=0.06, atol=0)


def test_directions_that_B_lacks_stay_finite_and_silent() -> None:
    model = lora()
    paths = list(adapted_layers(model.backbone))
    layers = adapted_layers(model.backbone)
    with torch.no_grad():
        layers[paths[0]].lora_B[:, 1] = 0.0
        layers[paths[1]].lora_B.zero_()
        layers[paths[2]].lora_B[:, 2] = layers[paths[2]].lora_B[:, 0]
    before = products(model)
    new, guide, log = make(model)
    assert log.null_directions == {paths[0]: 1, paths[1]: 3, paths[2]: 1}
    guide.rescale(0.05)
    found = draws(guide, 3000)
    assert all(bool(v.isfinite().all()) for v in found.values())
    assert torch.equal(found[paths[1]], torch.zeros_like(found[paths[1]])), "an untrained layer adds nothing"
    U = basis(layers[paths[0]].lora_B)[:, :2]
    size = spread(U, found[paths[0]] - before[paths[0]])
    torch.testing.assert_close(size.mean(), torch.tensor(0.05), rtol=0.01, atol=0)
    assert bool(_scales(guide).isfinite().all())
    assert float(_scales(guide).min()) > 0
    assert torch.isfinite(ELBO(new, guide)(batch()))


def _scales(guide: TrainingFree) -> Tensor:
    fn: Any = guide.trace.nodes["A.global"]["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.scale


def test_a_tiny_singular_value_is_damped() -> None:
    model = lora()
    layer = next(iter(adapted_layers(model.backbone).values()))
    with torch.no_grad():
        layer.lora_B.copy_(torch.linalg.qr(torch.randn(WIDTH, RANK))[0] * torch.tensor([1.0, 1e-3, 1e-6]))
    _, guide, _ = make(model)
    guide.rescale(0.02)
    with torch.no_grad():
        guide(token_batch())
    expected = 0.02 / (torch.tensor([1.0, 1e-3, 1e-6]) + 1e-6)
    torch.testing.assert_close(_scales(guide)[0, :, 0], expected, rtol=1e-3, atol=0)
    assert bool(_scales(guide).isfinite().all())


# the search


def staircase(edge: float, base: float = 2.0) -> Any:
    """A loss that leaves a tolerance of 0.1 where σ exceeds ``edge``."""
    return lambda scale: base if scale is None else base * (1.0 + 0.1 * scale / edge)


@pytest.mark.parametrize("edge", [0.002, 0.01, 0.4, 2e-5])
def test_the_search_finds_the_boundary_from_below(edge: float) -> None:
    search = Search(staircase(edge), Criterion.NLL, 0.1)
    low, high = search.run(1e-3, 1.5e-2, 12, 4)
    assert high is not None
    assert low <= edge < high
    assert high / low < 1.001
    assert max(p.scale for p in search.points if p.feasible) == low
    assert min(p.scale for p in search.points if not p.feasible) == high


def test_the_search_without_an_end() -> None:
    search = Search(staircase(100.0), Criterion.NLL, 0.1)
    with pytest.warns(UserWarning, match=r"Every σ_q tried, up to 0\.225"):
        assert search.run(1e-3, 1.5e-2, 5, 1) == (pytest.approx(0.225), None)
    assert len(search.points) == 2
    search = Search(staircase(1e-9), Criterion.NLL, 0.1)
    with pytest.raises(ConfigError, match=r"No σ_q tried is feasible: even 0\.001 changes"):
        search.run(1e-3, 1.5e-2, 5, 0)
    with pytest.raises(ConfigError, match=r"even 4\.4e-06|even 4\.44444e-06"):
        search.run(1e-3, 1.5e-2, 5, 2)
    nan = Search(lambda s: 1.0 if s is None or s < 0.004 else float("nan"), Criterion.NLL, 0.1)
    low, high = nan.run(1e-3, 1.5e-2, 12, 4)
    assert low < 0.004 <= (high or 0), "a loss that is not a number is infeasible"
    with pytest.raises(ConfigError, match="Without noise the anchors' nll is 0"):
        Search(lambda _: 0.0, Criterion.NLL, 0.1)


@pytest.mark.parametrize("criterion", ["nll", "accuracy"])
@pytest.mark.parametrize("labels", ["model", "targets"])
def test_the_chosen_scale_is_feasible_and_the_one_above_is_not(criterion: str, labels: str) -> None:
    model = lora()
    data = [batch(40)[:24], batch(40)[24:]]
    options: dict[str, Any] = {"criterion": criterion, "labels": labels, "num_samples": 6}
    new, guide, log = bayesianise(model, Delta(model), iter(data), tolerance=0.05, iterations=5, **options)
    plain = predict(new, guide, data, mean_only=True)
    own = (plain.probs > 0.5).float()
    chosen = torch.cat([b.targets for b in data if b.targets is not None]) if labels == "targets" else own
    parts = [replace(b, targets=t) for b, t in zip(data, chosen.split([24, 16]), strict=True)]

    def value(scale: float | None) -> float:
        if scale is not None:
            guide.rescale(scale)
        found = predict(new, guide, parts, num_samples=6, mean_only=scale is None)
        if criterion == "accuracy":
            return float(((found.probs > 0.5) == (chosen > 0.5)).double().mean())
        return -float(torch.where(chosen > 0.5, found.probs, 1 - found.probs).double().log().mean())

    base = value(None)
    assert log.baseline == pytest.approx(base, rel=1e-4)
    assert guide.scale == pytest.approx(log.scale, rel=1e-6)
    assert log.boundary is not None
    assert abs(value(log.scale) - base) / base <= 0.05 + 1e-5
    assert abs(value(log.boundary) - base) / base > 0.05 - 1e-5
    assert log.boundary / log.scale < 1.2
    assert (log.num_anchors, log.criterion, log.labels) == (40, criterion, labels)
    assert log.to_json()["points"][0]["scale"] == 0.015


def test_the_search_is_deterministic_and_leaves_the_generator_alone() -> None:
    model = lora()
    state = torch.get_rng_state()
    first = make(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = make(model, chunk_size=3)
    assert again[2].scale == pytest.approx(first[2].scale, rel=1e-6)
    assert make(model, seed=1)[2].points != first[2].points


def test_the_default_tolerances() -> None:
    model = lora()
    assert make(model, tolerance=None)[2].tolerance == 0.003
    assert make(model, tolerance=None, criterion="accuracy")[2].tolerance == 0.01


# what becomes of the given model


def test_copy_leaves_the_model_and_shares_frozen_memory() -> None:
    model = lora()
    data, guide = batch(), Delta(model)
    modules = dict(model.named_modules())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {k: p.requires_grad for k, p in model.named_parameters()}
    before = predict(model, guide, data).probs
    new, posterior, _ = make(model)
    assert dict(model.named_modules()) == modules
    assert {k: p.requires_grad for k, p in model.named_parameters()} == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(predict(model, guide, data).probs, before)
    old_weight = model.backbone.get_submodule("encoder.layer.0.attention.self.query").base_layer.weight
    new_weight = new.backbone.get_submodule("encoder.layer.0.attention.self.query").base_layer.weight
    assert new_weight is not old_weight
    assert new_weight.data_ptr() == old_weight.data_ptr(), "the frozen weights take no second memory"
    assert {p.data_ptr() for p in new.head.parameters()}.isdisjoint(p.data_ptr() for p in model.head.parameters())
    probs = predict(new, posterior, data).probs
    new.double()  # casting one leaves the other
    assert old_weight.dtype is torch.float32
    with torch.no_grad():
        model.head.weight.zero_()
    assert not torch.equal(probs, predict(model, guide, data).probs)


def test_without_copy_the_backbone_is_taken_over() -> None:
    model, other = lora(), lora()
    backbone = model.backbone
    expected = make(other)
    new, guide, log = make(model, copy=False)
    assert new.backbone is backbone
    assert log.scale == expected[2].scale
    assert all(layer.lora_A is None for layer in adapted_layers(backbone).values())
    assert torch.equal(predict(new, guide, batch()).probs, predict(*expected[:2], batch()).probs)


@pytest.mark.parametrize("copy", [True, False])
def test_an_error_leaves_the_model_as_it_was(copy: bool) -> None:
    model = lora()
    guide, data = Delta(model), batch()
    before = predict(model, guide, data).probs
    layers = adapted_layers(model.backbone)
    flags = {k: p.requires_grad for k, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    with pytest.raises(ConfigError, match="No σ_q tried is feasible"):
        bayesianise(model, guide, data, tolerance=1e-12, widen=0, copy=copy, num_samples=2)
    assert adapted_layers(model.backbone) == layers
    assert {k: p.requires_grad for k, p in model.named_parameters()} == flags
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(predict(model, guide, data).probs, before)


def test_head_likelihood_and_options_are_carried_over() -> None:
    model = lora(likelihood=Categorical(3), pooling="cls", alpha=5.0, num_data=77)
    data = batch(classes=3)
    new, _, _ = bayesianise(model, Delta(model), data, tolerance=0.05, num_samples=4)
    wanted = {"rank": RANK, "alpha": 5.0, "dropout": 0.1, "pooling": "cls", "num_data": 77, "flipout": False}
    assert {k: new.config()[k] for k in wanted} == wanted
    assert new.layers == model.layers
    assert isinstance(new.likelihood, Categorical)
    assert torch.equal(new.head.weight, model.head.weight)
    assert not new.training


def test_pruned_layers() -> None:
    gone, short = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"
    model = lora(ranks={gone: 0, short: 1})
    new, guide, log = make(model)
    assert new.ranks == model.ranks
    assert not log.null_directions
    expected, found = predict(model, Delta(model), batch()), predict(new, guide, batch(), mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert predict(new, guide, batch()).epistemic.max() > 0


def test_the_means_of_a_trained_posterior() -> None:
    """BLoB-Mean + TFB: A is the posterior's mean."""
    torch.manual_seed(4)
    model = fill_B(StochasticDown(bert(), Bernoulli(), rank=RANK, num_data=50))
    guide = MeanField(model, init_scale=0.3)
    data = batch()
    new, posterior, _ = bayesianise(model, guide, data, tolerance=0.02, num_samples=4)  # type: ignore[arg-type]
    expected, found = predict(model, guide, data, mean_only=True), predict(new, posterior, data, mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert new.num_data == 50


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_lora_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    to_peft(tmp_path, lora())
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_peft(tmp_path / "theirs", bert(), Bernoulli())
    new, guide, _ = make(model)
    assert (products(model)[model.layers[0]] - draws(guide, 2)[model.layers[0]]).abs().max() > 0
    data = token_batch()
    with torch.no_grad():
        expected = theirs.eval()(**data.inputs).last_hidden_state
        found = model.backbone(**data.inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert predict(new, guide, data).epistemic.max() > 0


# the guide


def test_nothing_of_the_guide_is_trained_and_fit_trains_the_head_alone() -> None:
    new, guide, _ = make(lora())
    assert not list(guide.parameters())
    assert sorted(new.trainable_parameters()) == ["head.bias", "head.weight"]
    buffers = {k: v.clone() for k, v in guide.state_dict().items()}
    ups = {p: la.lora_B.clone() for p, la in adapted_layers(new.backbone).items()}
    head = new.head.weight.clone()
    result = fit(new, guide, [batch()], epochs=2, progress=False)
    assert not torch.equal(new.head.weight, head)
    assert all(torch.equal(v, buffers[k]) for k, v in guide.state_dict().items())
    assert all(torch.equal(la.lora_B, ups[p]) for p, la in adapted_layers(new.backbone).items())
    assert result.history[0]["kl"] == pytest.approx(result.history[1]["kl"]), "the KL is a constant"
    new.head.requires_grad_(False)
    with pytest.raises(ConfigError, match="there is nothing to train"):
        fit(new, guide, [batch()], epochs=1, progress=False)


def test_saved_and_loaded(tmp_path: Path) -> None:
    new, guide, log = make(lora())
    save(tmp_path, new, guide, task={"search": log.to_json()})
    again, guide_again = load(tmp_path, bert())
    assert isinstance(guide_again, TrainingFree)
    assert guide_again.config() == guide.config() == {"scale": guide.scale}
    assert sorted(again.trainable_parameters()) == ["head.bias", "head.weight"]
    assert torch.equal(predict(again, guide_again, batch()).probs, predict(new, guide, batch()).probs)
    assert predict(new, guide, batch()).epistemic.max() > 0


def test_the_guide_by_hand() -> None:
    model = StochasticDown(bert(), Bernoulli(), rank=RANK, num_data=10)
    guide = TrainingFree(model, scale=0.3)
    assert guide.scale == pytest.approx(0.3)
    means = {path: torch.randn(RANK, WIDTH) for path in model.layers}
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.copy_(2.0 * torch.linalg.qr(torch.randn(WIDTH, RANK))[0])
    guide.place(means)
    with torch.no_grad():
        guide(token_batch())
    torch.testing.assert_close(_scales(guide), torch.full((4, RANK, WIDTH), 0.3 / 2.000001), rtol=1e-5, atol=0)
    fill_B(model)
    with pytest.raises(ConfigError, match=r"columns of B in the layer 'encoder.* are not orthogonal"):
        guide.place(means)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="scale is σ_q"):
            TrainingFree(model, scale=bad)
    with pytest.raises(ConfigError, match="which is a core; it serves A"):
        TrainingFree(StochasticCore(bert(), Bernoulli(), granularity="global", num_data=5))
    with pytest.raises(ConfigError, match="nothing to infer"):
        TrainingFree(LoRA(bert(), Bernoulli()))


# refusals


def test_refusals() -> None:
    model = lora()
    guide, data = Delta(model), batch()
    empty = LoRA(bert(), Bernoulli())
    regression = lora(likelihood=Gaussian())
    fusion = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT)

    def nothing() -> Iterator[Batch]:
        return iter(())

    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((empty, Delta(empty), data), {}, ConfigError, "B is 0 in every layer"),
        ((regression, Delta(regression), data), {}, ConfigError, "the likelihood is Gaussian"),
        ((fusion, Delta(fusion), data), {}, ConfigError, "not a FusionLoRA"),
        ((model, Delta(lora()), data), {}, ConfigError, "built for another model"),
        ((model, guide, nothing()), {}, DataError, "There are no anchors"),
        ((model, guide, data.without_targets()), {"labels": "targets"}, DataError, "needs targets in every batch"),
        ((model, guide, data), {"low": 0.1, "high": 0.1}, ConfigError, "0 < low < high"),
        ((model, guide, data), {"tolerance": 0.0}, ConfigError, "tolerance is a relative change"),
        ((model, guide, data), {"iterations": -1}, ConfigError, "must not be negative"),
        ((model, guide, data), {"num_samples": 0}, ConfigError, "num_samples"),
        ((model, guide, data), {"criterion": "auc"}, ConfigError, "Unknown criterion 'auc'"),
        ((model, guide, data), {"labels": "truth"}, ConfigError, "Unknown labels 'truth'"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            bayesianise(*arguments, **options)


def test_anchors_need_no_targets() -> None:
    model = lora()
    with_targets, without = (
        make(model),
        bayesianise(model, Delta(model), batch().without_targets(), tolerance=0.02, num_samples=4, iterations=4),
    )
    assert with_targets[2] == without[2]
