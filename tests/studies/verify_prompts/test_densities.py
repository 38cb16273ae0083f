"""The command that measures densities: what is spoilt, how it is compared, and that the page shows the records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bayes_adapters.analysis.metrics import auroc
from examples.studies.comparison import rewrite
from examples.studies.verify_prompts.densities import MARKER, frozen, read, shuffled, smoothed, tables, told

ROOT = Path(__file__).resolve().parents[3]


def test_recordings_are_spoilt_in_time_alone() -> None:
    frames = torch.randn(30, 4)
    assert torch.equal(frozen(frames), frames[15].expand(30, 4))
    torch.testing.assert_close(smoothed(frames)[10], frames[6:15].mean(0))
    torch.testing.assert_close(smoothed(frames)[0], frames[:5].mean(0))
    mixed = shuffled(frames)
    assert not torch.equal(mixed, frames)
    assert torch.equal(mixed.sort(0).values, frames.sort(0).values)


def test_an_auroc_with_its_interval() -> None:
    rng = torch.Generator().manual_seed(0)
    ordinary = {str(k): (float(v), 1.0 if v < 1 else 0.5) for k, v in enumerate(torch.randn(80, generator=rng))}
    high = {str(k): (float(v) + 1.0, 0.5) for k, v in enumerate(torch.randn(60, generator=rng))}
    found = told("distance", "fr", high, ordinary)
    scores = torch.tensor([v for v, _ in high.values()] + [v for v, _ in ordinary.values()])
    assert found.auroc == pytest.approx(auroc(scores, torch.arange(140) < 60))
    assert found.low < found.auroc < found.high
    error = (found.auroc * (1 - found.auroc) / 60) ** 0.5  # of a proportion of 60
    assert (found.high - found.low) / 3.92 == pytest.approx(error, rel=0.5)
    assert (found.flagged, found.n) == (1.0, 60)
    assert found.ordinary == pytest.approx(sum(v >= 1 for v, _ in ordinary.values()) / 80)
    certain = told("pairs", "x", {"a": (2.0, 0.0), "b": (3.0, 0.0)}, {"a": (0.0, 1.0), "b": (1.0, 1.0)})
    assert certain[2:7] == (1.0, 1.0, 1.0, 1.0, 0.0)


def test_the_page_shows_the_records() -> None:
    text = (ROOT / "docs/results/script-verification.md").read_text(encoding="utf-8")
    assert rewrite(text, MARKER, tables(read(ROOT / "results" / f"{MARKER}.json"))) == text
