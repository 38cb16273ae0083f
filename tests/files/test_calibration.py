"""What was fitted to predictions is saved with the adapter, and an adapter without any is what it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bayes_adapters import save
from bayes_adapters.analysis.calibration import DeviationScaling, TemperatureScaling, VectorScaling
from bayes_adapters.analysis.conformal import ConformalClasses, ConformalIntervals, ConformalQuantiles
from bayes_adapters.analysis.saved import from_config, load_calibration
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.cli import main
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files import describe
from tests.files.parts import pair
from tests.instrument import unchecked
from tests.refusals import refuses

FITTED = [
    TemperatureScaling(1 / 3),
    VectorScaling([0.1, 2 / 3], [math.pi, -math.pi]),
    DeviationScaling(1e-3),
    ConformalClasses(0.9, 0.1, 3, "raps", 0.2, 2, True),
    ConformalIntervals(1.7, 0.05),
    ConformalQuantiles(-0.2, 0.1),
    RiskThreshold(1 / 3, 0.1, "epistemic"),
    RiskThreshold(None, 0.01),
]


def test_what_was_fitted_comes_back_in_order(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide, calibration=FITTED)
    assert load_calibration(tmp_path) == FITTED
    probs = torch.rand(20)
    y = torch.bernoulli(probs)
    fitted = [TemperatureScaling.fit(probs, y), VectorScaling.fit(probs, y)]
    save(tmp_path, model, guide, calibration=fitted)
    assert load_calibration(tmp_path) == fitted


def test_an_adapter_without_calibration_is_unchanged(tmp_path: Path) -> None:
    model, guide = pair()
    for name, options in (("a", {}), ("b", {"calibration": []}), ("c", {"calibration": FITTED})):
        save(tmp_path / name, model, guide, task={"n": 1}, **options)
    texts = {name: (tmp_path / name / "adapter.json").read_bytes() for name in "abc"}
    assert texts["a"] == texts["b"]
    assert b"calibration" not in texts["a"]
    with_it = json.loads(texts["c"])
    assert with_it.pop("calibration")
    assert with_it | {"checksum": 0} == json.loads(texts["a"]) | {"checksum": 0}
    assert load_calibration(tmp_path / "a") == []


def test_show_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, guide = pair()
    save(tmp_path, model, guide, calibration=FITTED[:1])
    assert main(["show", str(tmp_path)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["calibration", "temperature temperature=0.333333"] in lines
    save(tmp_path, model, guide)
    assert main(["show", str(tmp_path)]) == 0
    assert "calibration" not in capsys.readouterr().out


class _Later:
    name: ClassVar[str] = "temperatures"

    def config(self) -> dict[str, Any]:
        return {"temperature": 1.0}


@pytest.mark.parametrize(
    ("place", "entry", "value"),
    [
        (3, "threshold", "x"),
        (3, "threshold", None),
        (3, "classes", 1),
        (3, "randomised", "no"),
        (3, "score", 3),
        (4, "threshold", -1.0),
        (5, "threshold", [1.0]),
        (6, "part", 3),
    ],
)
def test_numbers_out_of_range_are_refused_when_they_are_read(place: int, entry: str, value: Any) -> None:
    fitted = FITTED[place]
    with unchecked(), refuses(ConfigError, entry, value):
        from_config(fitted.name, fitted.config() | {entry: value})


def test_what_is_refused(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide, calibration=[_Later()])
    with refuses(AdapterFileError, str(tmp_path), "temperatures", "temperature"):
        load_calibration(tmp_path)
    for wrong in ({"threshold": math.nan}, {"threshold": "x"}):
        with unchecked(), refuses(ConfigError, "threshold", wrong["threshold"]):
            from_config("risk_threshold", {"risk": 0.1, "part": "total"} | wrong)
    with refuses(ConfigError, "part", "sum", "epistemic"):
        from_config("risk_threshold", {"risk": 0.1, "part": "sum", "threshold": 0.1})
    with refuses(ConfigError, "temperature", 0.0):
        from_config("temperature", {"temperature": 0.0})
    with refuses(ConfigError, "fitted", "the class TemperatureScaling"):
        save(tmp_path, model, guide, calibration=[TemperatureScaling])
    about = describe(tmp_path)
    for wrong in ({}, [{"name": "temperature"}], [{"name": 1, "config": {}}]):
        text = json.dumps({k: v for k, v in about.items() if k != "checksum"} | {"calibration": wrong})
        (tmp_path / "adapter.json").write_text(text)
        with refuses(AdapterFileError, "calibration"):
            load_calibration(tmp_path)
    text = json.dumps(
        {k: v for k, v in about.items() if k != "checksum"}
        | {"calibration": [{"name": "temperature", "config": {"t": 1.0}}]}
    )
    (tmp_path / "adapter.json").write_text(text)
    with refuses(AdapterFileError, str(tmp_path), "temperature", "t"):
        load_calibration(tmp_path)
