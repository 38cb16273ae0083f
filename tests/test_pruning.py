"""Ranks are scored, taken out in place, and stay out: in training, in checkpoints, in files and in what is exported."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, adapted_layers, load, predict, save
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError
from bayes_adapters.export import to_lora
from bayes_adapters.guides import Contextual, Delta, MeanField, RankWise
from bayes_adapters.models import DiagonalCore, FusionLoRA, LoRA, StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.plots import ranks_by_layer
from bayes_adapters.pruning import PruneRecord, PruneSchedule, prune, read_log, scores, write_log
from bayes_adapters.training import FitResult, batches, fit
from tests.helpers import CONTEXT, WIDTH, bert, fill_B, token_batch
from tests.test_rank_wise import LAYERS, Linear
from tests.test_rank_wise import pair as fresh

WHOLE = token_batch(22, seed=3)


def key(part: str, layer: int) -> str:
    return f"{part}-{LAYERS[layer].replace('.', '-')}"


def pair(rank: int = 3, weak: tuple[tuple[int, int], ...] = ((0, 1), (2, 0), (2, 1), (2, 2)), **options: Any) -> Any:
    """A model and guide whose ranks ``weak``, as (layer, rank), have small means: their scores are high."""
    model, guide = fresh(rank, **options)
    with torch.no_grad():
        for layer, i in weak:
            guide.loc[key("A", layer)][0, i].mul_(1e-3)
            guide.loc[key("B", layer)][0, :, i].mul_(1e-3)
    return model, guide


def hand_score(guide: RankWise, layer: int, i: int) -> float:
    """The formula with sorted lists and no tensor functions."""

    def middle(values: list[float]) -> float:
        values, half = sorted(values), len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    log_variance = guide.log_variance[LAYERS[layer].replace(".", "-")][i].item()
    row, column = guide.loc[key("A", layer)][0, i].tolist(), guide.loc[key("B", layer)][0, :, i].tolist()
    rates = [[log_variance - math.log(m * m + 1e-8) for m in means] for means in (row, column)]
    return 0.5 * (middle(rates[0]) + middle(rates[1]))


# scores


def test_scores_by_hand() -> None:
    model, guide = pair()
    with torch.no_grad():
        for p in guide.log_variance.values():
            p.normal_(-6.0)
    found = scores(model, guide)
    assert list(found) == LAYERS
    for layer, path in enumerate(LAYERS):
        assert found[path].tolist() == pytest.approx([hand_score(guide, layer, i) for i in range(3)], abs=1e-4)


def test_a_fresh_adapter_scores_above_common_thresholds_and_is_not_emptied() -> None:
    """The trap: at log σ² = −8 and with B at ±0.001 every rank of a wide layer scores about 3.6."""
    torch.manual_seed(0)

    class Wide(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(768, 3)

    model = StochasticFactors(Wide(), Bernoulli(), targets=["query"], rank=8, num_data=10)
    guide = RankWise(model)
    guide.loc["B-query"].data.uniform_(-1e-3, 1e-3)
    # means of the formula's terms: A 0.03 (U(±0.036)), B 7.2 ± its few rows
    assert scores(model, guide)["query"].mean().item() == pytest.approx(3.6, abs=0.5)
    before = copy.deepcopy(guide.state_dict())
    with pytest.raises(ConfigError, match=r"would take out all 8 ranks.*3\.\d+.*warm-up.*init_log_variance=-12"):
        prune(model, guide, threshold=2.0)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert PruneSchedule(threshold=2.0).start > 1, "the schedule waits by default"
    assert (scores(model, RankWise(model, init_log_variance=-12.0))["query"] < 2).all()
    assert prune(model, guide, threshold=2.0, allow_empty=True).after == {"query": 0}


def test_gauge_fixing_scores_equal_norms_and_changes_nothing_else() -> None:
    model, guide = pair(weak=())
    before = copy.deepcopy(guide.state_dict())
    fixed = scores(model, guide, gauge_fix=True)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    with torch.no_grad():  # the same product B A in another gauge, in which B is near the formula's 1e-8
        guide.loc[key("A", 1)].mul_(3000.0)
        guide.loc[key("B", 1)].div_(3000.0)
    again = scores(model, guide, gauge_fix=True)[LAYERS[1]]
    torch.testing.assert_close(again, fixed[LAYERS[1]], rtol=0, atol=1e-3)
    assert (scores(model, guide)[LAYERS[1]] - fixed[LAYERS[1]]).abs().max() > 0.1


def test_gauge_fixing_leaves_scores_of_untied_variances() -> None:
    model, guide = pair(weak=(), tie=False)
    with torch.no_grad():
        for p in guide.log_variance.values():
            p.normal_(-6.0)
    for path, values in scores(model, guide, gauge_fix=True).items():
        torch.testing.assert_close(values, scores(model, guide)[path], rtol=0, atol=1e-3)


def test_gauge_fixing_of_a_rank_that_is_exactly_zero() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.loc[key("B", 0)][0, :, 2] = 0.0
    assert scores(model, guide, gauge_fix=True)[LAYERS[0]].isfinite().all()


# removal


@pytest.mark.parametrize("tie", [True, False])
def test_prune_cuts_parameters_sites_and_priors_in_place(tie: bool) -> None:
    prior = {"A.*": pyro.distributions.Normal(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]])), "B.*": None}
    prior["B.*"] = pyro.distributions.Normal(0.0, 1.0)
    model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50, prior=prior)
    guide = RankWise(model, tie=tie)
    with torch.no_grad():
        for name, loc in guide.loc.items():
            loc.copy_(torch.arange(1.0, 4.0)[:, None] if name.startswith("A") else torch.arange(1.0, 4.0))
        guide.loc[key("A", 0)][0, 1] = guide.loc[key("B", 0)][0, :, 1] = 1e-4
        guide.loc[key("A", 2)].zero_()
        guide.loc[key("B", 2)].zero_()
    objects = dict(guide.named_parameters())
    record = prune(model, guide, threshold=2.0)
    assert record.kept == {LAYERS[0]: [0, 2], LAYERS[1]: [0, 1, 2], LAYERS[2]: [], LAYERS[3]: [0, 1, 2]}
    assert (record.removed, record.after) == (4, model.ranks)
    assert all(objects[name] is p for name, p in guide.named_parameters())
    assert guide.loc[key("A", 0)][0, :, 0].tolist() == [1.0, 3.0]
    assert guide.loc[key("B", 0)][0, 0].tolist() == [1.0, 3.0]
    shapes = {site.name: site.shape for site in model.sites}
    assert shapes[f"A.{LAYERS[0]}"] == (1, 2, WIDTH)
    assert shapes[f"B.{LAYERS[0]}"] == (1, WIDTH, 2)
    assert shapes[f"B.{LAYERS[2]}"] == (1, WIDTH, 0)
    for site in model.sites:
        assert adapted_layers(model.backbone)[site.layers[0]].sites[site.part] is site
        assert model.prior.of(site).shape() == site.shape  # type: ignore[attr-defined]
    kept = model.prior.of(next(s for s in model.sites if s.name == f"A.{LAYERS[0]}"))
    assert kept.base_dist.scale[0, :, 0].tolist() == [1.0, 3.0]
    assert {layer.scaling for layer in adapted_layers(model.backbone).values()} == {16.0 / 3}, "the scale stays α/r"
    assert ELBO(model, guide)(token_batch()).isfinite()


def test_ranks_with_small_means_go_and_the_mean_prediction_stays() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.loc[key("A", 0)][0, 1] = 0.0  # exactly nothing
        guide.loc[key("B", 2)].zero_()
    batch = token_batch()
    before = predict(model, guide, batch, mean_only=True).mean
    record = prune(model, guide, threshold=2.0)
    assert record.after == dict(zip(LAYERS, [2, 3, 0, 3], strict=True))
    torch.testing.assert_close(predict(model, guide, batch, mean_only=True).mean, before, rtol=0, atol=1e-6)
    assert predict(model, guide, batch, num_samples=3).epistemic.isfinite().all()


@pytest.mark.parametrize("local", [False, True])
def test_a_layer_without_ranks_contributes_exactly_nothing(local: bool) -> None:
    model, guide = fresh(init_log_variance=0.0, local_reparametrisation=local)
    batch = token_batch()
    with model.adapters_disabled(), torch.no_grad():
        guide(batch)
        expected = guide.trace.nodes["obs"]["fn"].logits
    prune(model, guide, threshold=-100.0, allow_empty=True)
    assert set(model.ranks.values()) == {0}
    with torch.no_grad():
        guide(batch)
    assert torch.equal(guide.trace.nodes["obs"]["fn"].logits, expected)
    terms = ELBO(model, guide).terms(batch, with_scales=True)
    assert terms.kl.item() == 0.0
    terms.loss.backward()
    assert predict(model, guide, batch, num_samples=3).epistemic.abs().max() < 1e-6
    assert prune(model, guide, threshold=2.0).removed == 0, "nothing is left to take out, and that is no error"


@pytest.mark.parametrize("least", [1, 2, 5])
def test_min_rank_keeps_those_with_the_lowest_scores(least: int) -> None:
    model, guide = pair()
    order = scores(model, guide)[LAYERS[2]].argsort().tolist()
    record = prune(model, guide, threshold=2.0, min_rank=least)
    assert record.kept[LAYERS[2]] == sorted(order[:least])
    assert record.after[LAYERS[0]] == max(2, min(least, 3))


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_same_optimiser(name: str) -> None:
    """Also with the loss of the step before still alive, as in every hand-written loop."""
    model, guide = pair()
    optimizer = OPTIMIZERS[name]([*model.trainable_parameters().values(), *guide.parameters()])
    elbo, batch = ELBO(model, guide), token_batch()
    losses: list[Tensor] = []
    for step in range(6):
        optimizer.zero_grad()
        losses.append(elbo(batch))
        losses[-1].backward()
        optimizer.step()
        if step == 2:
            states = {n: {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
                      for n, p in guide.named_parameters()}  # fmt: skip
            gradients = {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}
            assert prune(model, guide, optimizer, threshold=2.0).kept[LAYERS[0]] == [0, 2]
            for n, p in guide.named_parameters():
                assert p.grad is not None
                assert p.grad.shape == p.shape
                for k, value in optimizer.state[p].items():
                    assert not isinstance(value, Tensor) or value.shape in {(), p.shape}, (n, k)
            for k, before in states[f"loc.{key('A', 0)}"].items():
                after = optimizer.state[guide.loc[key("A", 0)]][k]
                assert torch.equal(after, before[:, [0, 2]] if before.dim() else before)
            B = guide.loc[key("B", 0)].grad
            assert B is not None
            assert torch.equal(B, gradients[f"loc.{key('B', 0)}"][:, :, [0, 2]])
    assert all(loss.isfinite() for loss in losses)


def test_an_optimiser_whose_state_cannot_be_cut_is_refused_before_anything_changes() -> None:
    model, guide = pair()
    optimizer = torch.optim.Adafactor([*model.trainable_parameters().values(), *guide.parameters()])
    ELBO(model, guide)(token_batch()).backward()
    optimizer.step()
    before = model.ranks
    with pytest.raises(ConfigError, match=r"Adafactor keeps '(row|col)_var', of shape .*Take an optimiser"):
        prune(model, guide, optimizer, threshold=2.0)
    assert model.ranks == before
    assert guide.loc[key("A", 0)].shape == (1, 3, WIDTH)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: StochasticDown(bert(), Bernoulli(), rank=3, num_data=50),
            "one site a layer; StochasticDown has A.glo",
        ),
        (lambda: StochasticCore(bert(), Bernoulli(), rank=3), "StochasticCore has core"),
        (lambda: StochasticFactors(bert(), Bernoulli(), rank=3, num_data=9), "MeanField does not say which"),
    ],
)
def test_models_and_guides_without_ranks_to_take_out(build: Any, says: str) -> None:
    model = build()
    with pytest.raises(ConfigError, match=says):
        prune(model, MeanField(model), threshold=2.0, allow_empty=True)


def test_a_point_estimate_has_no_scores() -> None:
    model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=9)
    with pytest.raises(ConfigError, match=r"Gaussian posterior; that of .* is a Delta"):
        scores(model, Delta(model))


def test_scores_that_are_not_finite_and_foreign_guides() -> None:
    model, guide = pair()
    with pytest.raises(ConfigError, match="built for another model"):
        prune(pair()[0], guide, threshold=2.0)
    guide.loc[key("A", 3)].data[0, 0] = math.nan
    with pytest.raises(ConfigError, match=f"scores of '{re.escape(LAYERS[3])}' are not finite"):
        prune(model, guide, threshold=2.0)


# training


def run(model: Any, guide: Any, epochs: int = 4, **options: Any) -> FitResult:
    """Four epochs of six steps."""
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    source = batches(WHOLE, 4, seed=7)
    return fit(model, guide, source, epochs=epochs, optimizer=optimizer, progress=False, **options)


def schedule(**options: Any) -> PruneSchedule:
    return PruneSchedule(**({"threshold": 1.0, "start": 8, "every": 4} | options))


def weights(model: Any, guide: Any) -> dict[str, Tensor]:
    found = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"guide.{k}": v for k, v in guide.state_dict().items()
    }
    return {k: v.detach().clone() for k, v in found.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_schedule_looks_when_it_should() -> None:
    model, guide = pair()
    plan = schedule(until=17)
    run(model, guide, on_step=plan)
    assert [record.step for record in plan.records] == [8, 12, 16]
    assert plan.records[0].before == dict.fromkeys(LAYERS, 3)
    assert plan.records[0].removed >= 4
    assert plan.records[-1].after == model.ranks
    with pytest.raises(ConfigError, match="start and every count optimiser steps"):
        PruneSchedule(threshold=2.0, start=0)


def test_without_a_warm_up_a_run_stops_rather_than_lose_its_adapter() -> None:
    model, guide = fresh(scale=1e-3, init_log_variance=-4.0)
    with pytest.raises(ConfigError, match="would take out all 12 ranks"):
        run(model, guide, on_step=PruneSchedule(threshold=2.0, start=1))
    assert set(model.ranks.values()) == {3}


@pytest.mark.parametrize("stop", [5, 8, 9, 14])
@pytest.mark.parametrize("options", [{}, {"tie": False, "local_reparametrisation": True}])
def test_an_interrupted_run_with_pruning_continues_bit_exactly(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped before, at and after removals: weights, history, records and the noise are those of an unstopped run."""

    common = {"validation": [WHOLE[:6]], "num_samples": 3}
    model, guide = pair(**options)
    plan = schedule()
    straight = run(model, guide, on_step=plan, **common)
    expected = weights(model, guide)
    assert any(record.removed for record in plan.records)

    model, guide = pair(**options)
    config = {"threshold": 1.0, "start": 8, "every": 4}
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, guide, stop, tmp_path, on_step=PruneSchedule(**config), **common)
    model, guide = pair(**options)
    again = PruneSchedule(**config)
    resumed = run(model, guide, on_step=again, checkpoint=tmp_path, **common)
    assert same(weights(model, guide), expected)
    assert again.records == plan.records
    drop = {"examples_per_second"}
    for a, b in zip(straight.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    assert (resumed.best_epoch, resumed.best_value) == (straight.best_epoch, straight.best_value)


def interrupted(model: Any, guide: Any, stop: int, folder: Path, **options: Any) -> None:
    """Ctrl-C before the step after ``stop``."""
    source = batches(WHOLE, 4, seed=7)

    class Data(type(source)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for i, batch in enumerate(super().__iter__()):
                if self.epoch * 6 + i == stop:
                    raise KeyboardInterrupt
                yield batch

    data = Data(WHOLE, 4, None, shuffle=True, seed=7, drop_last=False)
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    fit(model, guide, data, epochs=4, optimizer=optimizer, progress=False, checkpoint=folder, **options)


def test_a_checkpoint_is_refused_by_another_schedule_or_a_model_pruned_already(tmp_path: Path) -> None:
    model, guide = pair()
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, guide, 9, tmp_path, on_step=schedule())
    with pytest.raises(ConfigError, match=r"(?s)model.ranks: the checkpoint has None, this run .*parameters.guide.loc"):
        run(model, guide, on_step=schedule(), checkpoint=tmp_path)
    for other in (schedule(threshold=1.5), None):
        with pytest.raises(ConfigError, match=r"on_step: the checkpoint has 'PruneSchedule\(threshold=1.0"):
            run(*pair(), on_step=other, checkpoint=tmp_path)


def test_a_checkpoint_holds_a_prior_that_differs_by_rank(tmp_path: Path) -> None:
    def build() -> Any:
        prior = pyro.distributions.Normal
        by_rank = {"A.*": prior(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]])), "B.*": prior(0.0, 1.0)}
        torch.manual_seed(4)
        model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50, prior=by_rank)
        guide = RankWise(model, init_log_variance=-4.0)
        with torch.no_grad():
            for name, loc in guide.loc.items():
                loc.mul_(1.0 if name.startswith("A") else 500.0)
            guide.loc[key("A", 0)][0, 0].mul_(1e-4)
            guide.loc[key("B", 0)][0, :, 0].mul_(1e-4)
        return model, guide

    first, second = build(), build()
    run(*first, epochs=3, on_step=schedule(until=8))
    assert first[0].ranks[LAYERS[0]] == 2
    with pytest.raises(KeyboardInterrupt):
        interrupted(*second, 9, tmp_path, on_step=schedule(until=8))
    resumed = build()
    run(*resumed, epochs=3, on_step=schedule(until=8), checkpoint=tmp_path)
    assert same(weights(*first), weights(*resumed))
    for a, b in zip(first[0].prior.buffers(), resumed[0].prior.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_best_epoch_is_one_after_the_last_removal() -> None:
    values = iter([0.0, 5.0, 4.0, 6.0])
    model, guide = pair()
    result = run(model, guide, on_step=schedule(until=8), evaluate=lambda m, g: {"mine": next(values)}, monitor="mine")
    assert (result.best_epoch, result.best_value) == (2, 4.0), "epoch 0 was better, with ranks that are gone"


def test_training_leaves_the_one_rank_that_the_data_need() -> None:
    """y depends on x through a rank-1 update: under the log-uniform prior the other ranks' dropout rates grow."""
    torch.manual_seed(0)
    model = StochasticFactors(Linear(), Gaussian(math.log(0.3)), targets=["query"], rank=4, alpha=4.0, num_data=256)
    model.head.requires_grad_(False)
    model.likelihood.requires_grad_(False)
    guide = RankWise(model, init_log_variance=-6.0, local_reparametrisation=True)
    x = torch.randn(256, 1, 4)
    with torch.no_grad():
        y = model.head(model.backbone.query.base_layer(x)[:, 0])[:, 0] + x[:, 0] @ torch.tensor([1.0, -2.0, 0.5, 1.5])
    batch = Batch({"x": x}, y)
    plan = PruneSchedule(threshold=2.0, start=200, every=50)
    adam = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731
    fit(model, guide, [batch] * 50, epochs=7, optimizer=adam, kl_weight=20.0, progress=False, on_step=plan)
    assert model.ranks == {"query": 1}
    error = (predict(model, guide, batch, mean_only=True).mean - y).square().mean().sqrt()
    assert error < 0.2


# files, log, picture


def test_a_pruned_adapter_is_saved_smaller_and_loads_with_its_shapes(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path / "whole", model, guide)
    prune(model, guide, threshold=2.0)
    save(tmp_path / "pruned", model, guide)
    sizes = [(tmp_path / name / "adapter.safetensors").stat().st_size for name in ("whole", "pruned")]
    removed = 4 * (2 * WIDTH + 1) * 4  # 4 ranks: a row, a column and a variance each, of 4 bytes
    assert sizes[0] - sizes[1] == pytest.approx(removed, abs=64), "but for the header's digits and alignment"
    again, guide_again = load(tmp_path / "pruned", bert())
    assert again.config() == model.config()
    assert again.ranks == model.ranks == dict(zip(LAYERS, [2, 3, 0, 3], strict=True))
    assert again.prior.to_json() == model.prior.to_json()
    batch = token_batch()
    for options in ({"mean_only": True}, {"num_samples": 4}):
        first, second = predict(model, guide, batch, **options), predict(again, guide_again, batch, **options)
        assert torch.equal(first.mean, second.mean)
    assert ELBO(again, guide_again).terms(batch).kl.item() == pytest.approx(ELBO(model, guide).terms(batch).kl.item())
    assert prune(again, guide_again, threshold=2.0).removed == 0
    empty = prune(model, guide, threshold=-100.0, allow_empty=True)
    assert set(empty.after.values()) == {0}
    save(tmp_path / "empty", model, guide)
    assert set(load(tmp_path / "empty", bert())[0].ranks.values()) == {0}


@pytest.mark.parametrize(
    ("ranks", "says"),
    [({"query": 1}, "ranks names 'query', which is no adapted layer"), ({LAYERS[0]: 4}, "from 0 to rank=3; got .*4"),
     ({LAYERS[0]: -1}, "from 0 to rank=3")],
)  # fmt: skip
def test_wrong_ranks_are_refused(ranks: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LoRA(bert(), Bernoulli(), rank=3, ranks=ranks)


def test_the_log_is_json_and_comes_back(tmp_path: Path) -> None:
    model, guide = pair()
    records = [prune(model, guide, threshold=2.0, step=7), prune(model, guide, threshold=2.0)]
    write_log(tmp_path / "log.json", records)
    assert read_log(tmp_path / "log.json") == records
    assert records[1].removed == 0
    assert isinstance(records[0], PruneRecord)
    for text in ("[{}]", "{", '[{"step": 1, "other": 2}]'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(AdapterFileError, match="is no log of pruning"):
            read_log(tmp_path / "bad.json")


def test_picture_of_ranks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, guide = pair()
    record = prune(model, guide, threshold=2.0)
    figure = ranks_by_layer(record.after, model.rank)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "8 of 12 ranks left in 4 layers"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["attention.self.query", "attention.self.value"]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "2"), ((0, 1), "3"), ((1, 0), "0"), ((1, 1), "3")}  # fmt: skip
    figure.savefig(tmp_path / "ranks.png", dpi=50)
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    with pytest.raises(DataError, match="at least one adapted layer"):
        ranks_by_layer({}, 3)


# export


def exported(model: Any, guide: Any, **options: Any) -> Any:
    """The plain LoRA of a model, after checking that its predictions are the model's at the posterior mean."""
    lora = to_lora(model, guide, bert(), **options)
    assert type(lora) is LoRA
    batch = token_batch()
    expected = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, expected, rtol=0, atol=1e-6)
    with model.adapters_disabled(), torch.no_grad():
        assert (predict(model, guide, batch, mean_only=True).mean - expected).abs().max() > 1e-3, "the adapter matters"
    return lora


def test_export_of_a_pruned_adapter(tmp_path: Path) -> None:
    model, guide = pair(weak=((0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (3, 2)))
    prune(model, guide, threshold=2.0)
    lora = exported(model, guide)
    assert lora.ranks == {LAYERS[0]: 2, LAYERS[1]: 2, LAYERS[3]: 2}, "a layer without ranks is left out"
    assert {layer.scaling for layer in adapted_layers(lora.backbone).values()} == {16.0 / 3}
    assert all(p.requires_grad for p in lora.trainable_parameters().values())
    save(tmp_path, lora, Delta(lora))
    again, delta = load(tmp_path, bert())
    assert torch.equal(predict(again, delta, token_batch()).mean, predict(lora, Delta(lora), token_batch()).mean)


def test_ranks_that_are_exactly_zero_can_be_left_out() -> None:
    model, guide = pair(weak=())
    with torch.no_grad():
        guide.loc[key("A", 1)][0, 0] = 0.0
        guide.loc[key("B", 3)][0, :, 1] = 0.0
    assert set(exported(model, guide).ranks.values()) == {3}
    assert list(exported(model, guide, drop_zero=True).ranks.values()) == [3, 2, 3, 2]
    assert model.ranks == dict.fromkeys(LAYERS, 3), "the model itself is left as it is"


@pytest.mark.parametrize("build", [
    lambda: fill_B(StochasticDown(bert(), Bernoulli(), rank=3, num_data=50)),
    lambda: fill_B(DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)),
    lambda: fill_B(StochasticCore(bert(), Bernoulli(), rank=3, num_data=50, granularity="global")),
    lambda: StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50),
])  # fmt: skip
def test_export_of_every_model_with_random_weights(build: Any) -> None:
    model = build()
    guide = MeanField(model)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.normal_()
    exported(model, guide)


@pytest.mark.parametrize(
    ("build", "make_guide", "says"),
    [
        (lambda: StochasticCore(bert(), Bernoulli(), rank=3), Contextual, "drawn anew for each input"),
        (lambda: FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT), Delta, "FusionLoRA has a head of its own"),
    ],
)
def test_what_is_no_plain_lora_is_refused(build: Any, make_guide: Any, says: str) -> None:
    model = build()
    with pytest.raises(ConfigError, match=says):
        to_lora(model, make_guide(model), bert())


def test_export_refuses_other_backbones_and_empty_adapters() -> None:
    model, guide = pair()
    with pytest.raises(ConfigError, match="not a copy of the one"):
        to_lora(model, guide, bert(seed=1))
    with pytest.raises(ConfigError, match="already has adapters"):
        to_lora(model, guide, model.backbone)
    prune(model, guide, threshold=-100.0, allow_empty=True)
    with pytest.raises(ConfigError, match=r"No rank is left.*model.head"):
        to_lora(model, guide, bert())
