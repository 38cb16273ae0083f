"""The study of retrieval on tiny encoders and recordings made here: data, scores, thresholds, records, tables."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from bayes_adapters.analysis.retrieval import recall_at
from bayes_adapters.errors import DataError
from examples.retrieval import experiment, tables
from examples.retrieval.data import Lists, Split, Stream, Task, lists
from examples.retrieval.methods import BASE, METHODS, Method, find
from examples.retrieval.records import Result, Row
from examples.retrieval.ridge import PENALTIES, means, ridge, states
from examples.retrieval.scoring import Again, Scored, dual_scores, nearest, of_lists, pool_weight, pooled, scored_again
from examples.retrieval.training import Settings, Trained, pair_batch, train, with_wrong
from examples.studies.halves import Above
from examples.studies.wander.script import Texts
from tests.helpers import bert, whisper
from tests.refusals import refuses

WIDTH, SIZE = 16, 8  # frames as wide as the text encoder's states, as MiniLM's and Whisper's are
SETTINGS = Settings(
    epochs=1, adapted_epochs=1, pair_epochs=1, batch_size=6, pair_batch=6, wrong=2, near=3, size=SIZE, again=3,
    samples=2, pair_samples=2, risk=0.2, conditions=("clean", "white@-5", "ood-es"),
    pair_conditions=("clean", "ood-es"),
)  # fmt: skip


def split(count: int, offset: int, same: bool = True) -> Split:
    """Recordings whose frames say their script's last token; the last two have one script."""
    groups = torch.tensor([min(n, count - 2) if same else n for n in range(count)])

    def hear(language: str, condition: str, key: str) -> torch.Tensor:
        number = int(key)
        rng = torch.Generator().manual_seed(number + 1000 * len(condition) + (0 if language == "en" else 77))
        frames = 0.1 * torch.randn(2 + number % 3, WIDTH, generator=rng)
        frames[:, number % WIDTH] += 1.0
        return frames

    keys = [str(offset + n) for n in range(count)]
    tokens = [(1, 3 + offset + g, 3 + (offset + g) % 5) + (2,) * (g % 2) for g in groups.tolist()]
    return Split(keys, tokens, groups, hear, {"es": frozenset(keys[:4])}, hear)


@pytest.fixture(scope="module")
def task() -> Task:
    parts = {"train": split(12, 0), "validation": split(11, 12), "test": split(10, 23)}
    torch.manual_seed(0)
    net = bert(1).eval().requires_grad_(False)

    def backbone() -> nn.Module:
        own = bert(1).eval().requires_grad_(False)
        own.load_state_dict(net.state_dict())
        return own

    return Task(parts, backbone, WIDTH, Texts(net), partial(Above, whisper(2), 1))


def test_a_list_has_the_partner_once_or_never(task: Task) -> None:
    own = task.splits["test"]
    rows = list(range(10))
    both = [lists(own, rows, 6, partner=[there] * 10, seed=0) for there in (True, False)]
    for row in rows:
        group = int(own.groups[row])
        with_it, without = (which.scripts[row].tolist() for which in both)
        assert with_it[int(both[0].right[row])] == group
        assert with_it.count(group) == 1
        assert group not in without
        assert set(with_it) - {group} == set(without[:-1])
        assert len(set(without)) == 6
    assert both[1].right.tolist() == [-1] * 10
    assert len(set(both[0].right.tolist())) > 1  # its place says nothing
    some = lists(own, [7], 6, partner=[True], seed=0)
    assert torch.equal(some.scripts[0], both[0].scripts[7])  # whatever other queries there are
    with refuses(DataError, 9, 8):
        lists(own, rows, 9, partner=[True] * 10, seed=0)


def test_batches_hold_recordings_with_their_scripts(task: Task) -> None:
    own = task.splits["train"]
    assert own.scripts == list(range(11))
    batch = pair_batch(task, own, [3, 11], ["clean", "white@0"], False)
    assert batch.inputs["text.input_ids"][:, 1].tolist() == [6, 13]
    assert batch.targets.tolist() == [3, 10]
    assert batch.inputs["audio.token_mask"].sum(1).tolist() == [2, 4]
    encoded = pair_batch(task, own, [3, 11], ["clean", "clean"], True).inputs["text.signal"]
    ids, mask = own.ids([3, 11])
    states = task.texts.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoded[0], states[0])
    test = task.splits["test"]
    assert test.rows("ood-es") == [0, 1, 2, 3]
    assert test.rows("ood-fr") == []
    foreign, plain = (test.frames([0], [c]).values for c in ("ood-es", "clean"))
    assert not torch.equal(foreign, plain)


def test_an_epoch_has_each_recording_once_and_another_epoch_another_order(task: Task) -> None:
    def make(rows: Sequence[int], conditions: Sequence[str], _: object) -> object:
        return rows, conditions

    stream = Stream(task.splits["train"], make, {"clean": 0.5, "white@0": 0.5}, 5, 0)  # type: ignore[arg-type]
    epochs = []
    for epoch in (0, 0, 1):
        stream.set_epoch(epoch)
        epochs.append(list(stream))
        asked = [row for rows, _ in epochs[-1] for row in rows]
        assert len(asked) == len(set(asked)) == 10 == 5 * len(stream)
    assert epochs[0] == epochs[1] != epochs[2]
    assert {c for _, conditions in epochs[0] for c in conditions} == {"clean", "white@0"}


@pytest.mark.parametrize("listed", [True, False])
def test_wrong_scripts_are_wrong_and_half_of_them_near(task: Task, listed: bool) -> None:

    own, near = task.splits["train"], torch.tensor([[(g + 1) % 11, (g + 2) % 11] for g in range(12)])
    method, wrong = Method(None, pairs=True, encoded=False, lists=listed), 2 if listed else 1
    batch = with_wrong(task, own, near, method, wrong, list(range(12)), ["clean"] * 12, random.Random(0))
    numbers = batch.ids
    rows, groups = numbers // 11, numbers % 11
    right = own.groups[rows] == groups
    targets = batch.targets
    assert isinstance(targets, torch.Tensor)
    assert torch.equal((targets[:, 1] if listed else targets).bool(), right)
    assert right.sum() == 12
    assert len(rows) == 12 * (1 + wrong)
    if listed:
        assert torch.equal(targets[:, 0], rows)
    close = (near[rows] == groups[:, None]).any(1)[~right].double().mean()
    assert 0.4 < float(close) < 0.9
    assert "audio" in batch.context


def test_ridge_is_the_solution_of_its_equations(task: Task) -> None:
    own = task.splits["train"]
    (weight, text_mean, text_scale, mean, scale), _ = ridge(task)
    rows = list(range(12))
    v, u = (
        (x.double() - m) / s
        for x, m, s in ((means(own, rows, "clean"), mean, scale), (states(task, own, rows), text_mean, text_scale))
    )
    left = u.T @ v - weight @ v.T @ v  # λ W
    penalty = float((left * weight).sum() / weight.square().sum())
    assert min(abs(penalty / one - 1) for one in PENALTIES) < 1e-4
    torch.testing.assert_close(left, penalty * weight, rtol=1e-4, atol=1e-4)
    held_out = task.splits["test"]
    found = dual_scores(task, Trained("ridge", 0, [], ridge(task)[0]), held_out, ["clean"], 1)["clean"]
    assert found.shape == (1, 10, 9)
    assert float(found.abs().max()) <= 1 / 0.07 + 1e-4


def test_scores_of_lists_are_those_of_all_scripts(task: Task) -> None:
    trained = train(task, "bayesian-towers", 0, replace(SETTINGS, epochs=1))
    own = task.splits["test"]
    found = dual_scores(task, trained, own, ["clean", "ood-es", "ood-fr"], 2)
    assert {c: tuple(s.shape) for c, s in found.items()} == {"clean": (2, 10, 9), "ood-es": (2, 4, 9)}
    alone = dual_scores(task, trained, own, ["ood-es"], 2)["ood-es"]
    torch.testing.assert_close(alone, found["ood-es"], rtol=1e-4, atol=1e-4)  # one function in all conditions
    which = lists(own, [2, 0], 4, partner=[True, False], seed=0)
    said = of_lists(found["clean"], which, list(range(10)))
    assert said.score[1, 0, 3] == found["clean"][1, 2, which.scripts[0, 3]].double()
    torch.testing.assert_close(said.probs.sum(-1), torch.ones(2, dtype=torch.float64))
    close = nearest(task, trained, own, 3)
    assert not (close == own.groups[:, None]).any()


@pytest.mark.parametrize("name", ["rerank-caliber-x", "rerank-caliber-x-lists", "rerank-wander", "rerank-cola"])
def test_the_first_candidates_are_ranked_again_and_others_stay(name: str, task: Task) -> None:
    own, method = task.splits["test"], find(name)
    torch.manual_seed(0)
    assert method.build is not None
    model, guide = method.build(task)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and ("B." in key or key.endswith(".B") or "gate" in key):
                parameter.normal_(std=0.3)
    trained = Trained(name, 0, [(model, guide)])
    which = [lists(own, [0, 1, 2], 5, partner=[there] * 3, seed=0) for there in (True, False)]
    base = torch.randn(1, 10, 9, generator=torch.Generator().manual_seed(1))
    first = [of_lists(base, one, list(range(10))) for one in which]
    again = scored_again(task, trained, own, {"clean": which}, {"clean": first}, 2, 3)["clean"]
    for extra, old in zip(again, first, strict=True):
        one = pooled(old, extra, 0.5)
        torch.testing.assert_close(pooled(old, extra, 0.0).probs, old.probs)
        assert one.score.shape[0] == (3 if method.random else 1)
        torch.testing.assert_close(one.probs.sum(-1), torch.ones(3, dtype=torch.float64))
        top = old.mean.topk(2, -1).indices
        assert torch.equal(one.mean.topk(2, -1).indices.sort(-1).values, top.sort(-1).values)
        rest = torch.ones_like(old.mean).scatter(-1, top, 0.0).bool()
        torch.testing.assert_close(one.probs[rest], old.probs[rest])
        assert torch.equal(one.mean[rest].reshape(3, -1).argsort(-1), old.mean[rest].reshape(3, -1).argsort(-1))
        inside = one.log_probs.gather(-1, top.expand(len(one.log_probs), -1, -1)).log_softmax(-1)
        fine = old.mean.gather(-1, top) + 0.5 * extra.score
        torch.testing.assert_close(inside, fine.log_softmax(-1))
        torch.testing.assert_close(one.score.gather(-1, top.expand_as(fine)), fine)


def test_the_weight_of_a_pair_scorer_is_what_it_is_worth() -> None:
    base = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = Scored(base[None], base.log_softmax(-1)[None])
    top, right = base.topk(3, -1).indices, torch.arange(40) % 3
    place = top.gather(1, right[:, None])[:, 0]
    good = torch.nn.functional.one_hot(right, 3).double()[None]
    assert pool_weight(first, Again(top, 9 * good), place) == 2.0
    assert pool_weight(first, Again(top, -9 * good), place) == 0.0


def said(seed: int, right: torch.Tensor, worth: float, size: int = SIZE) -> Scored:
    """Two draws of scores in which the right candidate has ``worth`` more, where there is one."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, len(right), size, generator=rng, dtype=torch.float64)
    scores += worth * (right[:, None] == torch.arange(size))
    return Scored(scores, scores.log_softmax(-1))


def test_thresholds_hold_their_risk_and_temperatures_their_bounds() -> None:
    rng = torch.Generator().manual_seed(0)
    right = torch.randint(0, SIZE, (400,), generator=rng)
    mixed = torch.where(torch.arange(400) % 2 == 0, right, -1)
    blank = torch.zeros(400, SIZE, dtype=torch.long)
    pair = [Lists(list(range(400)), blank, right), Lists(list(range(400)), blank, mixed)]
    held_out = experiment.Both(pair, [said(1, right, 4.0), said(2, mixed, 4.0)])
    fitted = experiment.calibrated(held_out, 0.1)
    new = said(3, mixed, 4.0)
    answer = fitted.limit(new.mean)
    wrong = float(((answer != mixed) & (answer != -1)).double().mean())
    assert 0.03 < wrong < 0.14
    assert float((answer == mixed)[::2].double().mean()) > 0.5
    logs = said(4, right, 2.0)
    best = experiment.temperature_of(logs, right).temperature
    rows = torch.arange(400)

    def nll(t: float) -> float:
        return float(-(logs.probs.log() / t).log_softmax(-1)[rows, right].mean())

    assert nll(best) <= min(nll(best * 1.05), nll(best / 1.05))
    assert experiment.temperature_of(said(5, right, 50.0), right).temperature == experiment.COLDEST
    assert experiment.temperature_of(said(5, right, -50.0), right).temperature == experiment.HOTTEST


@pytest.mark.parametrize("name", [BASE, "ridge", "concat-core", "towers-ensemble", "rerank-fusion"])
def test_a_run_says_what_its_rows_say(name: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, name, replace(METHODS[name], tries=METHODS[name].tries[:1]))
    results, rows = experiment.run(task, name, 0, SETTINGS)
    pairs = METHODS[name].pairs
    assert [r.condition for r in results] == list(SETTINGS.pair_conditions if pairs else SETTINGS.conditions)
    assert [r.samples for r in results] == [{"towers-ensemble": 5, "concat-core": 2}.get(name, 1)] * len(results)
    for result in results:
        own = [row for row in rows if row.condition == result.condition]
        assert len(own) == result.n == (4 if result.condition == "ood-es" else 10)
        assert math.isnan(result.recall1) is pairs
        if result.condition == "ood-es":
            assert math.isnan(result.accuracy)
            assert result.given_wrong == result.false_coverage == sum(r.wrong_without for r in own) / 4
            continue
        assert result.accuracy == pytest.approx(sum(r.list_rank == 1 for r in own) / 10)
        assert result.nll == pytest.approx(sum(r.nll for r in own) / 10)
        assert result.scaled_nll == pytest.approx(sum(r.scaled_nll for r in own) / 10)
        assert result.given_wrong == pytest.approx(sum(r.wrong + r.wrong_without for r in own) / 20)
        assert result.right + sum(r.wrong for r in own) / 10 == pytest.approx(result.coverage)
        better = [(a.score > b.score_without) + (a.score == b.score_without) / 2 for a in own for b in own]
        assert result.by_score == pytest.approx(sum(better) / 100, abs=1e-6)
        if not pairs:
            assert result.recall5 == pytest.approx(sum(r.rank <= 5 for r in own) / 10)
        assert (result.epistemic > 0) is METHODS[name].random


def test_recall_of_the_whole_gallery_is_that_of_the_library(task: Task) -> None:
    trained = train(task, "ridge", 0, SETTINGS)
    own = task.splits["test"]
    scores = dual_scores(task, trained, own, ["clean"], 1)["clean"].mean(0)
    results, _ = experiment.run(task, "ridge", 0, SETTINGS)
    assert results[0].recall1 == recall_at(scores, own.groups, (1,))[1]


def test_tables_have_a_row_per_method_and_differences_their_sign() -> None:
    base: dict[str, float] = dict.fromkeys(Row._fields[5:], 0.5)
    rows = []
    for method, seed, n in ((m, s, n) for m in (BASE, "concat-lora") for s in range(3) for n in range(12)):
        better = 0.3 * (method != BASE)
        noise = {"scaled_nll": 1.0 - better + 0.01 * ((7 * n + 3 * seed) % 5), "list_rank": 1.0 + n % 2}
        noise |= {"score": (n * 5 + seed) % 12 + 20 * better, "score_without": float((n * 7 + seed) % 12)}
        rows.append(Row(method, seed, "clean", str(n), str(n // 2), **(base | noise)))
    arranged = tables.arranged(rows)
    found = tables.compare(arranged["clean"]["concat-lora"], arranged["clean"][BASE], tables.MEASURES["NLL with T"], 50)
    assert found is not None
    assert found.low < -0.299 < found.high + 0.01
    lines = tables.differences(arranged, draws=40)
    assert lines[0].startswith("| recordings | difference | R@1, all scripts |")
    assert "concat-lora − towers" in lines[2]
    assert "−.300" in lines[2]
    auc = tables.compare(
        arranged["clean"]["concat-lora"], arranged["clean"][BASE], tables.MEASURES["no match by similarity"], 40
    )
    assert auc is not None
    assert auc.difference > 0.1
    numbers = {f: 0.5 for f, kind in Result.__annotations__.items() if kind == "float"}
    plain = dict.fromkeys(
        ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "auroc_ood", "aurc", "seconds"), 0.5
    )
    own = [Result(BASE, s, "test", "clean", 10, samples=1, **(numbers | plain)) for s in range(2)]
    assert tables.means(own, tables.NO_MATCH)[2].startswith(f"| clean | {BASE} | 2 | .500 ± .000 |")
    assert tables.costs(own)[2].startswith(f"| {BASE} |")
