"""Active learning: what is labelled next, and that strategies of a seed start alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.studies.few_labels import active
from examples.studies.few_labels.active import Strategy, acquire
from examples.studies.few_labels.task import FewLabels, States
from examples.studies.meld.data import Meld
from examples.studies.meld.records import Row
from tests.helpers import bert
from tests.studies.few_labels.test_few_labels import AnyWord
from tests.studies.meld.parts import PROMPTS, write

SETTINGS = replace(active.POOL, train_size=40, dev_size=24, test_size=30, epochs=1, batch_size=8, rank=2, samples=3)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> FewLabels:
    data = Meld.load(write(tmp_path_factory.mktemp("meld")))
    return FewLabels.of(data, PROMPTS, AnyWord(), lambda: bert(3), SETTINGS, 0)


def test_a_subset_has_the_states_of_its_utterances(pool: FewLabels) -> None:
    assert isinstance(pool.train, States)
    some = pool.train.subset([7, 2])
    one, other = some.batch([1]), pool.train.batch([2])
    assert torch.equal(one.inputs["inputs_embeds"], other.inputs["inputs_embeds"])
    assert torch.equal(some.targets(), pool.train.targets()[[7, 2]])
    assert len(pool.train) == 40


def test_strategies_of_a_seed_start_alike_and_label_what_they_ask_for(
    pool: FewLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[list[int]]] = {}

    def spy(strategy: Strategy, samples: torch.Tensor, labelled: list[int], count: int, seed: int) -> list[int]:
        found = acquire(strategy, samples, labelled, count, seed)
        assert len(set(found) - set(labelled)) == count
        asked[current].append(found)
        return found

    monkeypatch.setattr(active, "acquire", spy)
    for strategy in Strategy:
        current = strategy.value
        asked[current] = []
        records, rows = active.run(pool, "bayeslora-2026", strategy, 1, SETTINGS, (8, 16))
        assert [(r.method, r.condition) for r in records] == [
            (f"bayeslora-2026-{strategy}", f"labels@{n}") for n in (8, 16)
        ]
        assert len(rows) == 2 * len(pool.test)
    starts = [found[0] for found in asked.values()]
    assert starts[0] == starts[1] == starts[2]
    assert len({tuple(sorted(found[1])) for found in asked.values()}) > 1


def test_differences_leave_out_the_round_that_all_share() -> None:
    rows = []
    for strategy, right in (("random", 0.5), ("bald", 0.6), ("total", 0.5)):
        for seed in range(3):
            for count in active.ROUNDS[:2]:
                for unit in range(8):
                    p = right + 0.01 * unit + 0.002 * seed + (0.3 if count == active.ROUNDS[0] else 0.0)
                    said = (f"c-lora-{strategy}", seed, f"labels@{count}", f"u{unit}", f"d{unit // 2}")
                    rows.append(Row(*said, 0, p, 0.9 - p, 0.1, 1.0, 1.0, 0.0))
    table = active.differences(rows)
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| c-lora-{s} − c-lora-random" for s in ("bald", "total")]
    found = [float(line.split(" | ")[1].split()[0].replace("−", "-")) for line in table[2:]]
    assert found[0] == pytest.approx(-torch.log(torch.tensor(1.19)).item(), abs=0.01)  # p is .537 on average
    assert found[1] == 0
