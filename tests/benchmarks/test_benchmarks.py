"""The benchmarks run, compare like with like, and report a failure as one. No test looks at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bayes_adapters import ELBO, Granularity
from examples.benchmarks import agreement, decoder, frozen_prefix, gpu_check, speed, variants
from examples.benchmarks.agreement import Check, check_bfloat16, check_device
from examples.benchmarks.handwritten import disagreement
from examples.benchmarks.learning import check_learning, synthetic_pairs
from examples.benchmarks.measure import Variant, interleave, ratio
from examples.benchmarks.memory import peak_in_own_process
from examples.benchmarks.variants import check_hand_written, elbo, hand, names, svi, training_step
from examples.benchmarks.workload import METHODS, Backbones, Sizes, build, make_batch
from tests.refusals import refuses

# PEFT reads a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SIZES = Sizes(4, 6, 5, 12)


@pytest.mark.parametrize("method", METHODS)
def test_the_hand_written_step_computes_what_the_library_computes(method: str) -> None:
    assert max(check_hand_written(method, Backbones("tiny"), make_batch(SIZES, 50))) < 1e-5


def test_a_hand_written_step_that_differs_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.benchmarks.handwritten.PRIOR_SCALE", 0.21)
    with refuses(RuntimeError, "c-lora", "1e-05"):
        check_hand_written("c-lora", Backbones("tiny"), make_batch(SIZES, 50))


def test_every_variant_of_a_method_takes_the_same_first_step() -> None:
    batch, backbones = make_batch(SIZES, 50), Backbones("tiny")
    for method in METHODS:
        losses = []
        for name in (hand(method), elbo(method), svi(method)):
            step = training_step(name, backbones, batch)
            with step.setting():
                torch.manual_seed(3)
                losses.append(float(step.run()))
                for _ in range(3):
                    step.run()
                torch.manual_seed(3)
                losses.append(float(step.run()))
        first, later = losses[::2], losses[1::2]
        assert first == pytest.approx([first[0]] * 3, rel=1e-5)
        assert later == pytest.approx([later[0]] * 3, rel=1e-4)
        assert all(a != b for a, b in zip(first, later, strict=True)), "a step trained nothing"


def test_peft_and_our_lora_change_the_same_number_of_weights() -> None:
    pytest.importorskip("peft")
    ours, _ = build("lora", Backbones("tiny")(), 12)
    peft = variants.PeftLoRA(Backbones("tiny")())
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, peft)]
    assert count[0] == count[1] > 0


def test_interleaving_runs_every_variant_each_round_and_drops_the_warm_up() -> None:
    calls: list[str] = []
    ticks = iter(range(1000))
    variants_ = {name: Variant(lambda n=name: calls.append(n)) for name in "abc"}
    seconds = interleave(variants_, rounds=4, warm_up=2, clock=lambda: float(next(ticks)))
    assert [sorted(calls[i : i + 3]) for i in range(0, 18, 3)] == [["a", "b", "c"]] * 6
    assert len({tuple(calls[i : i + 3]) for i in range(0, 18, 3)}) > 1, "the order must vary"
    assert seconds == {name: [1.0] * 4 for name in "abc"}


def test_a_ratio_is_paired_by_round() -> None:
    found = ratio({"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]}, "a", "b")
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_peak_memory_is_the_steps_own_however_large_the_parent_is() -> None:
    parent = torch.ones(100_000_000)  # 400 MB: more than the step needs
    found = peak_in_own_process(elbo("c-lora"), "tiny", Sizes(64, 100, 5, 12), "cpu")
    assert 20 < found < 1000
    del parent


def test_the_benchmark_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--quick", "--no-memory", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert set(written["training"]["variants"]) == set(names())
    assert capsys.readouterr().out == (tmp_path / "speed.md").read_text()


def test_disagreement_sees_nan_and_a_missing_zero() -> None:
    one, zero = torch.ones(2), torch.zeros(2)
    assert disagreement([one], [one]) == disagreement([zero], [zero]) == 0.0
    assert disagreement([one * 1.5], [one]) == 0.5
    assert disagreement([one], [zero]) == disagreement([one * math.nan], [one]) == math.inf


def test_the_gpu_check_fails_when_the_device_draws_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("contextual", Granularity.TOKEN, "cpu").passed
    monkeypatch.setattr(agreement, "fill_up_projections", lambda model, scale: None)
    original, calls = agreement.loss_and_gradients, []

    def other(*args: object) -> object:
        calls.append(args)
        loss, gradients = original(*args)  # type: ignore[arg-type]
        name = next(iter(gradients))
        return loss, gradients | ({name: gradients[name] + 1.0} if len(calls) == 2 else {})

    monkeypatch.setattr(agreement, "loss_and_gradients", other)
    assert not check_device("contextual", Granularity.TOKEN, "cpu").passed


def test_the_bfloat16_check_sees_a_posterior_that_is_not_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_bfloat16("contextual", Granularity.TOKEN, "cpu").passed
    monkeypatch.setattr("bayes_adapters.guides.amortised.fp32", lambda device: torch.autocast("cpu", torch.bfloat16))
    check = check_bfloat16("contextual", Granularity.TOKEN, "cpu")
    assert not check.passed
    assert "bfloat16" in check.detail


def test_neither_text_nor_audio_alone_tells_the_synthetic_target() -> None:
    data = synthetic_pairs(512, SIZES, 50)
    target = torch.cat([b.targets for b in data])
    topic = torch.cat([b.context["audio"].mean() for b in data])
    topic = topic - topic.mean(0)
    topic = (topic @ topic[0] > 0).float()
    words = torch.cat([b.inputs["input_ids"] for b in data])
    word = torch.isin(words, words[0]).any(1).float()
    for alone in (topic, word):
        assert abs(float(torch.corrcoef(torch.stack([alone, target]))[0, 1])) < 0.15
    agree = (topic == word).float()
    assert abs(float(torch.corrcoef(torch.stack([agree, target]))[0, 1])) > 0.95


def test_learning_that_does_not_happen_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_learning(Backbones("tiny"), "cpu", autocast=False, quick=True).passed
    monkeypatch.setattr(ELBO, "terms", _frozen(ELBO.terms))
    assert not check_learning(Backbones("tiny"), "cpu", autocast=False, quick=True).passed


def _frozen(terms: object) -> object:
    """The ELBO with gradients 10^-6 of what they should be: AdamW is scale free, so they are also randomly signed."""

    def weak(self: ELBO, *args: object, **kwargs: object) -> object:
        found = terms(self, *args, **kwargs)  # type: ignore[operator]
        sign = torch.randint(2, ()) * 2.0 - 1.0
        return type(found)(
            found.loss + (sign - 1) * (found.loss - found.loss.detach()), found.nll, found.kl, found.kl_weight
        )

    return weak


def test_the_gpu_check_reports_and_says_when_one_check_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]

    def broken(*_: object, **__: object) -> Check:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_check, "check_learning", broken)
    assert gpu_check.main(arguments) == 1
    assert "out of memory" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    checks, own = found["checks"], len(decoder.SYSTEMS)
    assert [c["passed"] for c in checks] == [True] * (len(checks) - 2 - own) + [False] * 2 + [True] * own
    assert len(checks) == 2 * len(agreement.combinations()) + 2 + own
    assert len(found["costs"]["decoder"]) == 4 * own


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "no CUDA GPU: skipped\n"
    assert not (tmp_path / "none").exists()


def test_the_benchmark_of_the_frozen_prefix_reports_every_depth(capsys: pytest.CaptureFixture[str]) -> None:
    assert frozen_prefix.main(["--quick", "--draws", "4"]) == 0
    shown = capsys.readouterr().out
    assert [f"top {depth} adapted" in shown for depth in (1, 2)] == [True, True]
    assert " 0.625 |" in shown, "(1 + 1/4) of 2 blocks"
