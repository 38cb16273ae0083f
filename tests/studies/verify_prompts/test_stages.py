"""Stages of a long run: numbered lines, and a time left that is measured."""

from __future__ import annotations

import io

import pytest

from examples.studies.verify_prompts.stages import Stages


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_that_of_what_was_done() -> None:
    clock, out = Clock(), io.StringIO()
    stages = Stages(2, out, clock)
    with stages.stage("encode", 1_000, "recordings") as advance:
        for _ in range(10):
            clock.now += 3.0  # 100 recordings in 3 s
            advance(100)
    with stages.stage("train", 0, "steps") as advance:
        pass
    assert out.getvalue().splitlines() == [
        "[     0 s] 1/2 encode: 1,000 recordings",
        "[     3 s] 1/2 encode: 100 of 1,000, about 27 s left",
        "[    24 s] 1/2 encode: 800 of 1,000, about 6 s left",
        "[    30 s] 1/2 encode: done in 30 s",
        "[    30 s] 2/2 train: all in the cache",
    ]


def test_nothing_is_foretold_from_a_first_instant() -> None:
    clock, out = Clock(), io.StringIO()
    with Stages(1, out, clock).stage("encode", 1_000, "recordings") as advance:
        advance(1)
        assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with Stages(1, out).stage("encode", 4, "recordings") as advance:
        advance(3)
    assert "3/4" in out.getvalue()
    assert "━" in out.getvalue()


def test_a_stage_that_fails_is_not_done() -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Stages(1, out).stage("encode", 4, "recordings"):
        raise RuntimeError
    assert "done" not in out.getvalue()
