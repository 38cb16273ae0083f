"""Steps of the total uncertainty, on numbers whose differences are known."""

from __future__ import annotations

from examples.studies.verify_prompts.predictions import Prediction, resampled_together
from examples.studies.verify_prompts.rises import rises


def rows(condition: str, total: dict[str, float], seeds: int = 2) -> list[Prediction]:
    return [
        Prediction("m", seed, "test", condition, script, script, 1, 0.5, value + 0.1 * seed, 0.0, 0.0)
        for seed in range(seeds)
        for script, value in total.items()
    ]


def test_a_constant_rise_has_no_interval_and_others_stay_within_their_extremes() -> None:
    pairs = {
        ("m", "clean"): rows("clean", {"a": 0.1, "b": 0.3, "only here": 9.0}),
        ("m", "white@20"): rows("white@20", {"a": 0.15, "b": 0.35}),
        ("m", "white@10"): rows("white@10", {"a": 0.05, "b": 0.45}),
    }
    text, _, _, _, first, second, *rest = rises(pairs, ["m", "absent"], 200)
    assert "95 %" in text
    assert first == "| clean → white@20 | +0.050 [+0.050, +0.050] | – |"
    assert second == "| white@20 → white@10 | +0.000 [-0.100, +0.100] | – |"
    assert rest == [""], "steps that were not measured are left out"


def test_nothing_measured_nothing_said() -> None:
    assert rises({}, ["m"], 100) == []
    assert rises({("m", "clean"): rows("clean", {"a": 0.1, "b": 0.2})}, ["m"], 100) == []


def test_both_answers_about_a_recording_are_drawn_together() -> None:
    pairs = [("en/1", "one", 1), ("en/1", "two", 0), ("en/2", "two", 1), ("en/2", "one", 0), ("es/7", "one", 0)]
    assert resampled_together(pairs) == ["one", "one", "two", "two", "es/7"]
