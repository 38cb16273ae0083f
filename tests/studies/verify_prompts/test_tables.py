"""The page's tables say what the records say."""

from __future__ import annotations

import math
from dataclasses import replace

from bayes_adapters.analysis.records import Record
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.comparison import rewrite
from examples.studies.grid import claim_folder
from examples.studies.verify_prompts.experiment import Settings
from examples.studies.verify_prompts.tables import COLUMNS, table
from tests.refusals import refuses


def record(method: str, seed: int, condition: str, auc: float, ood: float = math.nan) -> Record:
    return Record(method, seed, "test", condition, 4, 0.5, auc, 0.6, 0.2, 0.1, 0.5, ood, 0.3, 10, 1.0)


def test_mean_spread_and_order_of_methods() -> None:
    records = [record("b", 0, "clean", 0.8), record("b", 1, "clean", 0.9), record("a", 0, "clean", 0.5)]
    records[:2] = [replace(r, parameters=74113) for r in records[:2]]
    lines = table([*records, record("b", 0, "ood-fr", math.nan, 0.75)], COLUMNS, "method")
    assert lines[0].startswith("| method | seeds | trained | clean AUC | clean NLL | clean ECE | foreign")
    assert lines[2] == "| b | 2 | 74,113 | .850 ± .071 | .600 ± .000 | .100 ± .000 | – / .75 / – / – |"
    assert lines[3].startswith("| a | 1 | – | .500 | ")


def test_one_is_not_shortened_to_nothing() -> None:
    lines = table([record("a", 0, "clean", 1.0), record("a", 0, "ood-es", math.nan, 1.0)], COLUMNS, "method")
    assert "| 1.000 |" in lines[2]
    assert "1.00 / –" in lines[2]


def test_rewrite_touches_only_what_is_between_the_markers() -> None:
    text = "before\n<!-- t -->\nold\n<!-- /t -->\nafter"
    assert rewrite(text, "t", ["new"]) == "before\n<!-- t -->\nnew\n<!-- /t -->\nafter"
    with refuses(DataError, 0, "<!-- u -->"):
        rewrite(text, "u", ["new"])


def test_runs_of_other_settings_are_not_reused(tmp_path) -> None:
    claim_folder(tmp_path / "runs", Settings())
    claim_folder(tmp_path / "runs", Settings(device="cuda"))  # where it ran makes no difference
    with refuses(ConfigError, "epochs: 20 there", "3 now"):
        claim_folder(tmp_path / "runs", Settings(epochs=3))
