"""One answer for one pair: does this recording say this script, and can the answer be trusted?

Works on an adapter whose saved task is ``verify_prompts``: a text model whose guide reads a speech encoder's frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis.saved import Scaling, load_calibration
from bayes_adapters.backbones import SpeechEncoder, speech_encoder, text_backbone
from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import whole_number
from bayes_adapters.files import load, load_task
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.speech._checks import (
    require_bernoulli,
    require_entries,
    require_short,
    require_task,
    require_trained_on,
    require_words,
)
from bayes_adapters.speech.audio import read_audio, refuse_silence

TASK = "verify_prompts"
_POSITIONS = 50  # of the speech encoder, a second
_THRESHOLDS = ("total_q90", "total_q99", "epistemic_q90", "epistemic_q99", "total_risk10")


@dataclass(frozen=True)
class VerifyTask:
    """What a saved adapter says about the task it was trained for.

    Args:
        text_backbone: name or folder, for :func:`bayes_adapters.backbones.text_backbone`.
        speech_encoder: name or folder, for :func:`bayes_adapters.backbones.speech_encoder`.
        max_seconds: longest recording, seconds.
        frames_per_second: rate of the frames the guide reads; divides 50.
        max_tokens: longest script in tokens; longer ones were cut in training.
        thresholds: ``total_q90``, ``total_q99``, ``epistemic_q90``, ``epistemic_q99``: quantiles of the uncertainty of
            validation pairs, nats; ``total_risk10``: the largest total uncertainty up to which at most 10 % of the
            answers to validation pairs were wrong, nats.
        calibration: whatever training measured on validation data; reported, not applied.
        fingerprint: of the speech encoder in training, see :meth:`bayes_adapters.backbones.SpeechEncoder.fingerprint`;
            None where an older version saved none.
    """

    text_backbone: str
    speech_encoder: str
    max_seconds: float
    frames_per_second: int
    max_tokens: int
    thresholds: dict[str, float]
    calibration: dict[str, Any]
    fingerprint: str | None = None

    @classmethod
    def from_directory(cls, directory: str | Path) -> VerifyTask:
        """Read and check the task of a saved adapter; nothing else of it is read.

        Raises:
            AdapterFileError: no readable adapter, another task, or an entry is missing or out of range.
        """
        task = load_task(directory)
        require_task(task, TASK, directory)
        require_entries(task, _THRESHOLDS, directory)
        return cls(
            task["text_backbone"],
            task["speech_encoder"],
            float(task["max_seconds"]),
            int(task["frames_per_second"]),
            task["max_tokens"],
            {name: float(task["thresholds"][name]) for name in _THRESHOLDS},
            dict(task.get("calibration", {})),
            task.get("speech_fingerprint"),
        )

    def check(self, recording: str | Path, script: str) -> Float[Tensor, " N"]:
        """Read the recording and look at the script before any model is loaded; return the waveform, (N,), 16 kHz.

        Raises:
            DataError: the recording cannot be used (absent, no audio, empty, silent, too short or long), or the script
                has no word or is no text.
        """
        require_words(script)
        wave = read_audio(recording, max_seconds=self.max_seconds)
        refuse_silence(recording, wave)
        return wave


@dataclass(frozen=True)
class Verdict:
    """The answer for one pair.

    Args:
        probability: that the recording says the script, 0 to 1.
        total, aleatoric, epistemic: uncertainty in nats, total = aleatoric + epistemic ≤ log 2.
        words: answer and advice in two sentences.
        trusted: whether total and epistemic uncertainty are within the 90 % quantiles of validation pairs, and the
            total within the range where at most 10 % of the answers were wrong.
    """

    probability: float
    total: float
    aleatoric: float
    epistemic: float
    words: str
    trusted: bool


class Verifier:
    """A saved adapter with its encoders, ready for recordings.

    Args:
        model, guide: trained for the task; their device is used.
        tokenizer: of the text backbone.
        encoder: the frozen speech encoder.
        task: what the adapter says of itself.
        calibration: applied to every answer, in this order, before it meets the thresholds of ``task``, which must then
            be those of calibrated answers.

    Raises:
        ConfigError: the model's likelihood is not ``Bernoulli``.
    """

    def __init__(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        tokenizer: Any,
        encoder: SpeechEncoder,
        task: VerifyTask,
        calibration: Sequence[Scaling] = (),
    ) -> None:
        require_bernoulli(model.likelihood.name)
        self.model, self.guide, self.tokenizer, self.encoder, self.task = model, guide, tokenizer, encoder, task
        self.calibration = calibration

    @classmethod
    def from_directory(cls, directory: str | Path, device: str = "auto") -> Verifier:
        """Load a saved adapter, the scalings of probabilities saved with it, and the two backbones it names.

        Args:
            directory: what ``bayes_adapters.save`` wrote, with a ``verify_prompts`` task.
            device: a torch device; ``auto`` is the first GPU if there is one, else the CPU.

        Raises:
            AdapterFileError: the adapter is corrupted, of another task, or made for other backbones, the speech encoder
                included: the same model from another source may have other weights.
            ConfigError: the device does not exist.
            MissingResourceError: a backbone is neither local nor reachable.
        """
        task, place = VerifyTask.from_directory(directory), pick_device(device)
        backbone, tokenizer = text_backbone(task.text_backbone)
        model, guide = load(directory, backbone.to(place))
        encoder = speech_encoder(task.speech_encoder, task.max_seconds)
        require_trained_on(task.speech_encoder, encoder.fingerprint(), task.fingerprint, directory)
        encoder.encoder.to(place)
        scalings = [fitted for fitted in load_calibration(directory) if isinstance(fitted, Scaling)]
        return cls(model, guide, tokenizer, encoder, task, scalings)

    def verify(self, recording: str | Path, script: str, *, samples: int = 32, seed: int = 0) -> Verdict:
        """Answer for one pair.

        Args:
            recording: an audio file of at most ``task.max_seconds``.
            script: the text it should say, of at most ``task.max_tokens`` tokens and what the tokenizer allows.
            samples: posterior draws S, at least 2: one draw has no epistemic uncertainty, and would always be trusted.
            seed: of the draws; the same seed gives the same answer.

        Raises:
            DataError: the recording or the script cannot be used.
            ConfigError: ``samples`` is below 2.
        """
        whole_number("samples", samples, least=2)
        wave = self.task.check(recording, script)
        tokens = self.tokenizer(script, return_tensors="pt")
        count, limit = tokens["input_ids"].shape[1], min(self.task.max_tokens, self.tokenizer.model_max_length)
        require_short(count, limit)
        frames = self.encoder([wave], pool=_POSITIONS // self.task.frames_per_second)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        frames = Frames(as_stored(frames.values).float(), frames.mask).to(inputs["input_ids"].device)
        batch = Batch(inputs, context={"audio": frames})
        drawn = bool(self.calibration)  # each draw is scaled too
        answer = predict(self.model, self.guide, batch, num_samples=samples, seed=seed, return_samples=drawn)
        for scaling in self.calibration:
            answer = scaling(answer)
        probability, total, epistemic = (float(v[0]) for v in (answer.probs, answer.total, answer.epistemic))
        sentence, trusted = advice(total, epistemic, self.task.thresholds)
        return Verdict(
            probability, total, float(answer.aleatoric[0]), epistemic, f"{claim(probability)} {sentence}", trusted
        )


def as_stored(values: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Round frames to float16, as training read them from its cache: what is verified is what was trained on.

    >>> import torch
    >>> as_stored(torch.tensor([0.1])).float()
    tensor([0.1000])
    >>> as_stored(torch.tensor([0.1])).float().item() == torch.tensor(0.1).item()
    False
    """
    return values.half()


def claim(probability: float) -> str:
    """Say the answer in a sentence.

    >>> claim(0.97)
    'Yes, this recording says the script (p = 0.97).'
    >>> claim(0.5)
    'Undecided: the recording may say the script or not (p = 0.50).'
    >>> claim(0.2)
    'Probably not: this recording does not seem to say the script (p = 0.20).'
    """
    p = f"(p = {probability:.2f})"
    if probability >= 0.9:
        return f"Yes, this recording says the script {p}."
    if probability > 0.6:
        return f"Probably yes: this recording seems to say the script {p}."
    if probability >= 0.4:
        return f"Undecided: the recording may say the script or not {p}."
    if probability > 0.1:
        return f"Probably not: this recording does not seem to say the script {p}."
    return f"No, this recording does not say the script {p}."


def advice(total: float, epistemic: float, thresholds: dict[str, float]) -> tuple[str, bool]:
    """Say whether to trust an answer, by comparing its uncertainty with that of validation pairs.

    Args:
        total: nats.
        epistemic: nats.
        thresholds: see :class:`VerifyTask`.

    Returns:
        A sentence, and whether both parts are within their 90 % quantiles and the total within ``total_risk10``.

    >>> limits = {"total_q90": 0.4, "total_q99": 0.6, "epistemic_q90": 0.02, "epistemic_q99": 0.05, "total_risk10": 0.3}
    >>> advice(0.1, 0.01, limits)
    ('Trust it: its uncertainty is within what was seen on validation recordings.', True)
    """
    reasons = {
        "epistemic": ("this recording or script is unlike the training data", epistemic),
        "total": ("recording and script leave the answer open", total),
    }
    for quantile, level, order in ((99, "99th", "Do not rely on it"), (90, "90th", "Check it by ear")):
        for part, (reason, value) in reasons.items():
            limit = thresholds[f"{part}_q{quantile}"]
            if not value <= limit:
                return (
                    f"{order}: its {part} uncertainty, {value:.2g} nats, is above the {level} percentile of validation "
                    f"recordings ({limit:.2g}): {reason}."
                ), False
    if not total <= thresholds["total_risk10"]:
        return (
            f"Check it by ear: its total uncertainty, {total:.2g} nats, is above {thresholds['total_risk10']:.2g}; "
            "only up to there were at most 10 % of the answers on validation recordings wrong."
        ), False
    return "Trust it: its uncertainty is within what was seen on validation recordings.", True
