"""The command line: what it prints, and one clear line and exit code 2 for everything that cannot work."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import BertTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from bayes_adapters import Batch, Bernoulli, Frames, Gaussian, load, predict, save
from bayes_adapters.audio import read_audio
from bayes_adapters.backbones import speech_encoder, text_backbone
from bayes_adapters.cli import main
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError
from bayes_adapters.guides import CrossAttention, Delta
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.verify import Verifier, VerifyTask, advice, as_stored, claim
from tests.helpers import WIDTH, bert, gpt2

LIMITS = {"total_q90": 0.4, "total_q99": 0.6, "epistemic_q90": 0.02, "epistemic_q99": 0.05, "total_risk10": 0.3}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "your", "call", "is", "important", "to", "us", "one", "two"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random backbones as local folders, an adapter on them, and recordings."""
    home = tmp_path_factory.mktemp("home")
    bert().save_pretrained(home / "text")
    (home / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(home / "text")
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=20, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=200,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(home / "speech")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(home / "speech")
    backbone, _ = text_backbone(home / "text")
    torch.manual_seed(4)
    model = StochasticCore(backbone, Bernoulli(), rank=2)
    guide = CrossAttention(model, context_dim=WIDTH, dim=4)
    with torch.no_grad():
        for p in [*model.trainable_parameters().values(), *guide.parameters()]:
            p.add_(0.5 * torch.randn_like(p))
    save(home / "adapter", model, guide, task=task(home))
    time = np.arange(16_000) / 8_000
    tone = 0.3 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(home / "good.wav", tone[:8_000], 8_000)
    soundfile.write(home / "stereo.flac", np.stack([tone, -tone], 1)[:6_000], 8_000)
    soundfile.write(home / "short.wav", tone[:100], 8_000)
    soundfile.write(home / "long.wav", np.tile(tone, 2), 8_000)
    soundfile.write(home / "empty.wav", tone[:0], 8_000)
    (home / "text.wav").write_text("this is no recording")
    return home


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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def check_refusal(answer: tuple[int, str, str], *says: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("bayes-adapters: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for phrase in says:
        assert phrase in err, err


# verify


def test_verify_as_a_user_runs_it(home: Path) -> None:
    command = [str(Path(sys.executable).with_name("bayes-adapters")), "verify", str(home / "good.wav"), "your call"]
    command += ["--adapter", str(home / "adapter"), "--samples", "4"]
    first = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    verdict = json.loads(first.stdout)
    assert verdict.keys() == {
        "probability", "total", "aleatoric", "epistemic", "words", "trusted", "calibration"
    }  # fmt: skip
    assert verdict["calibration"] == {"ece": 0.02}
    bad = subprocess.run([*command[:2], "absent.wav", *command[3:]], capture_output=True, text=True, check=False)
    check_refusal((bad.returncode, bad.stdout, bad.stderr), "'absent.wav' does not exist", "wav, flac or ogg")


def test_verify_says_what_predict_says(home: Path, run: Run) -> None:
    options = ("--adapter", home / "adapter", "--samples", 5, "--json")
    code, out, err = run("verify", home / "good.wav", "your call", *options)
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
    with pytest.raises(ConfigError, match="at least 1"):
        verifier.verify(home / "good.wav", "your call", samples=0)


@pytest.mark.parametrize(
    ("recording", "script", "says"),
    [
        ("absent.wav", "one", ["does not exist"]),
        ("text", "one", ["is a folder"]),
        ("text.wav", "one", ["Cannot read", "as audio"]),
        ("empty.wav", "one", ["is empty", "0 samples"]),
        ("short.wav", "one", ["too short", "0.1 s"]),
        ("long.wav", "one", ["too long", "at most 2 s"]),
        ("good.wav", "", ["script ''", "no word"]),
        ("good.wav", "  ?!", ["no word"]),
        ("good.wav", "one " * 15, ["too long: 17 tokens", "at most 16"]),
    ],
)
def test_a_pair_that_cannot_be_verified(home: Path, run: Run, recording: str, script: str, says: list[str]) -> None:
    check_refusal(run("verify", home / recording, script, "--adapter", home / "adapter"), *says)


def test_a_script_may_be_as_long_as_task_and_tokenizer_allow(home: Path) -> None:
    verifier = Verifier.from_directory(home / "adapter", "cpu")
    assert 0 < verifier.verify(home / "good.wav", "one " * 14, samples=1).probability < 1
    verifier.tokenizer.model_max_length = 9
    verifier.verify(home / "good.wav", "one " * 7, samples=1)
    with pytest.raises(DataError, match="too long: 10 tokens, at most 9"):
        verifier.verify(home / "good.wav", "one " * 8, samples=1)


def test_frames_are_rounded_as_they_are_stored() -> None:
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    kept = as_stored(values)
    assert kept.dtype == torch.float16
    assert not torch.equal(kept.float(), values)
    torch.testing.assert_close(kept.float(), values, rtol=2**-11, atol=1e-6)
    assert torch.equal(as_stored(kept.float()), kept)


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--samples", "0"], ["--samples", "got 0"]), (["--device", "abacus"], ["'abacus'", "'cpu', 'cuda' or 'auto'"])],
)
def test_verify_options(home: Path, run: Run, options: list[str], says: list[str]) -> None:
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", home / "adapter", *options), *says)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads((folder / "adapter.json").read_text())
    change(about["task"])
    (folder / "adapter.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, ["does not exist", "bayes_adapters.save"]),
        (lambda f: (f / "adapter.json").write_text("{"), ["is not JSON"]),
        (lambda f: (f / "adapter.safetensors").write_bytes(b"12345"), ["checksum differs"]),
        (lambda f: edit(f, lambda t: t.update(task="sentiment")), ["'sentiment'", "not for 'verify_prompts'"]),
        (lambda f: edit(f, lambda t: t["thresholds"].pop("total_q90")), ["thresholds.total_q90"]),
        (lambda f: edit(f, lambda t: t.update(max_seconds=-1, frames_per_second=7)), ["max_seconds, frames_"]),
        (lambda f: edit(f, lambda t: t.pop("max_tokens")), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(max_tokens=2.5)), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(max_tokens=0)), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(text_backbone=str(f.parent / "gone"))), ["no model folder", "gone"]),
    ],
)
def test_an_adapter_that_cannot_verify(home: Path, run: Run, tmp_path: Path, spoil: Any, says: list[str]) -> None:
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter"), *says)


def test_an_adapter_on_another_backbone_or_without_a_task(home: Path, run: Run, tmp_path: Path) -> None:
    bert(seed=9).save_pretrained(tmp_path / "other")
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(tmp_path / "other")
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    edit(tmp_path / "adapter", lambda t: t.update(text_backbone=str(tmp_path / "other")))
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter"), "another backbone")
    model = LoRA(bert(), Gaussian())
    save(tmp_path / "plain", model, Delta(model))
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "plain"), "without a task")
    backbone, tokenizer = text_backbone(home / "text")
    model = LoRA(backbone, Gaussian())
    with pytest.raises(ConfigError, match=r"'bernoulli'.*'gaussian'"):
        Verifier(model, Delta(model), tokenizer, speech_encoder(home / "speech", 2.0), VerifyTask(**plain(home)))


def plain(home: Path) -> dict[str, Any]:
    return {name: value for name, value in task(home).items() if name != "task"}


def test_debug_shows_the_traceback(home: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        main(["verify", "absent.wav", "one", "--adapter", str(home / "adapter"), "--debug"])
    with pytest.raises(AdapterFileError):
        main(["show", str(home / "text"), "--debug"])


@pytest.mark.parametrize(
    ("total", "epistemic", "trusted", "says"),
    [
        (0.3, 0.02, True, ["Trust it"]),
        (0.4, 0.02, False, ["Check it by ear", "0.4 nats", "above 0.3", "10 %"]),
        (0.41, 0.02, False, ["Check it by ear", "total", "0.41 nats", "90th", "(0.4)"]),
        (0.3, 0.03, False, ["Check it by ear", "epistemic", "0.03 nats", "90th", "(0.02)"]),
        (0.7, 0.02, False, ["Do not rely", "total", "99th", "(0.6)", "open"]),
        (0.7, 0.08, False, ["Do not rely", "epistemic", "0.08 nats", "99th", "(0.05)", "unlike the training data"]),
        (math.nan, 0.0, False, ["Do not rely"]),
    ],
)
def test_advice(total: float, epistemic: float, trusted: bool, says: list[str]) -> None:
    sentence, answer = advice(total, epistemic, LIMITS)
    assert answer is trusted
    assert all(phrase in sentence for phrase in says), sentence


def test_claims_are_in_order() -> None:
    said = [claim(p).split()[0:2] for p in (0.95, 0.9, 0.7, 0.5, 0.49, 0.2, 0.1, 0.0)]
    assert [" ".join(s) for s in said] == [
        *["Yes, this"] * 2, *["Probably yes:"] * 2, *["Probably not:"] * 2, *["No, this"] * 2
    ]  # fmt: skip


def test_devices() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' cannot be used"):
            pick_device("cuda")


# targets and show


def test_targets(home: Path, run: Run) -> None:
    code, out, _ = run("targets", home / "text", "--targets", "query", "value", "--rank", 4)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["encoder.layer.0.attention.self.query", "16", "->", "16", "128"]
    assert len(lines) == 1 + 4 + 2
    model = LoRA(bert(), Bernoulli(), rank=4)
    adapters = sum(p.numel() for name, p in model.trainable_parameters().items() if "lora_" in name)
    assert f"4 layers of BertModel, rank 4: {adapters:,} adapter parameters" in lines_joined(out)
    _, out, _ = run("targets", home / "text", "--targets", "all-linear", "--exclude", "dense", "--layers", 1)
    assert "3 layers" in out
    assert "layer.0." not in out
    _, out, _ = run("targets", home / "text", "--pattern", r".*layer\.0.*key")
    assert "1 layers" in out
    check_refusal(run("targets", home / "text", "--targets", "qery"), "'qery'", "mean 'query'")
    check_refusal(run("targets", home / "text", "--layers", 7), "block [7]")
    check_refusal(run("targets", home / "text", "--rank", 0), "rank", "got 0")
    check_refusal(run("targets", home / "nowhere"), "no model folder")
    check_refusal(run("targets", home / "adapter"), "no config.json")


def test_targets_of_conv1d_layers_and_of_foreign_folders(run: Run, tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "gpt2")
    _, out, _ = run("targets", tmp_path / "gpt2", "--targets", "c_attn")
    assert "16 -> 48" in out
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "abacus"}')
    check_refusal(run("targets", tmp_path / "odd"), "no model that transformers can build", "abacus")


def lines_joined(text: str) -> str:
    return " ".join(text.split())


def test_show(home: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("show", home / "adapter")
    assert code == 0
    text = lines_joined(out)
    model, guide = load(home / "adapter", text_backbone(home / "text")[0])
    own = sum(p.numel() for p in model.trainable_parameters().values())
    for phrase in (
        "structure stochastic_core",
        "rank=2",
        "granularity=token",
        "guide cross_attention context_dim=16, dim=4",
        "prior Normal loc=0, scale=0.2 on 4 sites",
        "layers 4: encoder.layer.0.attention.self.query ...",
        f"{own:,} of the model, {sum(p.numel() for p in guide.parameters()):,} of the guide",
        "base BertModel",
        "torch=",
        "verify_prompts",
        "likelihood bernoulli",
    ):
        assert phrase in text, phrase
    plain_lora = LoRA(bert(), Bernoulli(), targets=["query"])
    save(tmp_path / "lora", plain_lora, Delta(plain_lora))
    text = lines_joined(run("show", tmp_path / "lora")[1])
    assert "the cores are fixed to I" in text
    assert "task none" in text
    check_refusal(run("show", tmp_path), "adapter.json", "does not exist")
    check_refusal(run("show", home / "nowhere"), "does not exist")


def test_output_survives_a_terminal_without_unicode(home: Path) -> None:
    for command in (["show", str(home / "adapter")], ["targets", str(home / "text")]):
        done = subprocess.run(
            [sys.executable, "-c", "from bayes_adapters.cli import main; raise SystemExit(main())", *command],
            capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [(), ("verfy",), ("verify", "a.wav"), ("targets", "x", "--rank", "many")])
def test_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "usage: bayes-adapters" in err
    assert run("--help")[0] == 0
