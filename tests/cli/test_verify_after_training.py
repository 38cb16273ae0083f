"""What was fitted after training and saved with the adapter is what ``bayes-adapters verify`` applies, or refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, load, predict, save
from bayes_adapters.analysis.calibration import DeviationScaling, TemperatureScaling, VectorScaling
from bayes_adapters.analysis.conformal import ConformalClasses, ConformalIntervals
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.backbones import text_backbone
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability import PairDensity, frozen_pairs
from bayes_adapters.speech._checks import require_verifiable
from bayes_adapters.speech.verify import Verdict, Verifier
from tests.cli.parts import Run, task
from tests.helpers import WIDTH
from tests.refusals import refuses

WIDE = {"total_q90": 9.0, "total_q99": 9.0, "epistemic_q90": 9.0, "epistemic_q99": 9.0, "total_risk10": 9.0}
SURE = TemperatureScaling(0.05)
SETS = ConformalClasses(0.9, 0.2, 2)


def density(width: int = WIDTH, *, low: bool = True) -> PairDensity:
    """Held-out agreements that all lie above, or below, that of any pair."""
    found = PairDensity(width, WIDTH, 2, pairs=39)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("input", "context"):
            found.get_buffer(f"{name}_map").normal_(generator=rng)
        found.correlation.copy_(torch.tensor([0.9, 0.5]))
        found.limit.fill_(0.0)
        found.held_out.copy_(torch.linspace(-1, 1, 39) + (1e6 if low else -1e6))
    return found


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, guide = load(home / "adapter", text_backbone(home / "text")[0])
    guide.posterior_temperature = 0.25
    folder = tmp_path_factory.mktemp("fitted")
    fitted: dict[str, Any] = {"calibration": [SURE, RiskThreshold(9.0, 0.1), SETS]}
    about = task(home) | {"thresholds": WIDE}
    save(folder, model, guide, task=about, pair_densities={"audio": density()}, **fitted)
    return folder


@pytest.fixture(scope="module")
def verifier(folder: Path) -> Verifier:
    return Verifier.from_directory(folder, "cpu")


def asked(verifier: Verifier, home: Path, calibration: list[Any], pairs: PairDensity | None = None) -> Verdict:
    verifier.calibration, verifier.pairs = calibration, pairs
    return verifier.verify(home / "good.wav", "your call", samples=5)


def test_the_command_applies_what_the_folder_holds(home: Path, folder: Path, run: Run, verifier: Verifier) -> None:
    options = ("verify", home / "good.wav", "your call", "--samples", 5, "--adapter", folder)
    code, out, _ = run(*options, "--json")
    assert code == 0
    found = json.loads(out)
    assert verifier.guide.posterior_temperature == 0.25
    expected = asked(verifier, home, [SURE, RiskThreshold(9.0, 0.1), SETS], density())
    for name in ("probability", "epistemic", "agreement", "words"):
        assert found[name] == getattr(expected, name)
    assert expected.answers is not None
    assert (found["answers"], found["alpha"]) == (list(expected.answers), 0.2)
    assert found["agreement_share"] == pytest.approx(1 / 40)
    warm = predict_again(verifier, home, temperature=1.0)
    assert predict_again(verifier, home).epistemic.item() < warm.epistemic.item()
    code, out, _ = run(*options)
    assert code == 0
    assert "2.5 % of matching pairs agree no better" in out
    assert "(the right one is among them in 80 % of cases)" in out


def predict_again(verifier: Verifier, home: Path, **options: Any) -> Prediction:
    """The prediction of the model itself, from the batch that a verdict is made of."""
    return predict(verifier.model, verifier.guide, batch_of(verifier, home), num_samples=5, **options)


def batch_of(verifier: Verifier, home: Path) -> Batch:
    seen: list[Batch] = []

    def watch(model: Any, guide: Any, batch: Batch, **options: Any) -> Prediction:
        seen.append(batch)
        return predict(model, guide, batch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayes_adapters.speech.verify.predict", watch)
        asked(verifier, home, [])
    return seen[0]


def test_sets_and_thresholds_see_what_the_scalings_before_them_return(home: Path, verifier: Verifier) -> None:
    plain = asked(verifier, home, [])
    assert plain.trusted
    assert plain.answers is plain.agreement is plain.agreement_share is None
    p = plain.probability
    scaled = float(SURE.rows(torch.tensor([[1 - p, p]], dtype=torch.float64))[0, 1])
    limit = 1 - (max(p, 1 - p) + max(scaled, 1 - scaled)) / 2  # the unscaled set is empty, the scaled one is not
    sets = ConformalClasses(limit, 0.2, 2)
    assert asked(verifier, home, [SURE, sets]).answers == ("yes" if p > 0.5 else "no",)
    assert asked(verifier, home, [sets, SURE]).answers == ()
    for threshold, trusted in ((plain.total + 1e-3, True), (plain.total - 1e-3, False), (None, False)):
        found = asked(verifier, home, [RiskThreshold(threshold, 0.1)])
        assert found.trusted is trusted
        assert ("Check it by ear" in found.words) is not trusted
    assert asked(verifier, home, [SURE, RiskThreshold(plain.total - 1e-3, 0.1)]).trusted


def test_a_pair_that_does_not_belong_together_is_said(
    home: Path, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, batch = asked(verifier, home, []), batch_of(verifier, home)
    inputs, contexts, _ = frozen_pairs(verifier.model, batch, "audio")
    for low in (True, False):
        found = asked(verifier, home, [], density(low=low))
        assert (found.probability, found.total) == (plain.probability, plain.total)
        assert found.agreement == float(density().agreement(inputs, contexts))
        assert found.agreement_share == pytest.approx(1 / 40 if low else 1.0)
        for probability in (0.95, 0.05):
            total = torch.tensor([0.2])
            answer = Prediction(torch.tensor([probability]), total, total, 0 * total, num_samples=5)
            monkeypatch.setattr("bayes_adapters.speech.verify.predict", lambda *_, said=answer, **__: said)
            verdict = asked(verifier, home, [], density(low=low))
            strange = low and probability > 0.4  # a "no" needs no second witness
            assert verdict.trusted is not strange
            assert ("belong together" in verdict.words) is strange
        monkeypatch.undo()


def test_what_is_no_answer_of_yes_or_no_is_refused(home: Path, verifier: Verifier) -> None:
    wrong: list[tuple[list[Any], tuple[object, ...]]] = [
        ([ConformalIntervals(1.0, 0.1)], ("'conformal_intervals'", "numbers")),
        ([DeviationScaling(1.0)], ("'deviation'", "numbers")),
        ([ConformalClasses(0.5, 0.1, 3)], ("'conformal_classes'", "3 classes")),
        ([VectorScaling([1.0] * 3, [0.0] * 3)], ("'vector'", "3 classes")),
        ([SETS, ConformalClasses(0.5, 0.1, 2)], (2, "0.2, 0.1")),
    ]
    for calibration, says in wrong:
        with refuses(ConfigError, *says):
            require_verifiable(calibration)
        with refuses(ConfigError, *says):
            Verifier(verifier.model, verifier.guide, None, verifier.encoder, verifier.task, calibration)
    with refuses(DataError, f"(B, {WIDTH + 1})", "encoders"):
        asked(verifier, home, [], density(WIDTH + 1))
