"""What the command's tests share: limits, words, a task, and how a refusal looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMITS = {"total_q90": 0.4, "total_q99": 0.6, "epistemic_q90": 0.02, "epistemic_q99": 0.05, "total_risk10": 0.3}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "your", "call", "is", "important", "to", "us", "one", "two"]


def task(home: Path) -> dict[str, Any]:
    return {
        "task": "verify_prompts",
        "text_backbone": str(home / "text"),
        "speech_encoder": str(home / "speech"),
        "max_seconds": 2.0,
        "frames_per_second": 25,
        "max_tokens": 16,
        "thresholds": LIMITS,
        "calibration": {"ece": 0.02},
    }


Run = Callable[..., tuple[int, str, str]]


def check_refusal(answer: tuple[int, str, str], *says: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("bayes-adapters: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for phrase in says:
        assert phrase in err, err


def lines_joined(text: str) -> str:
    return " ".join(text.split())
