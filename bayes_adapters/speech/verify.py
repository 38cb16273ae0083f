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

from bayes_adapters.analysis.conformal import ConformalClasses
from bayes_adapters.analysis.saved import Calibration, Scaling, load_calibration
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.backbones import SpeechEncoder, speech_encoder, text_backbone
from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import whole_number
from bayes_adapters.files import load, load_task
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability import PairDensity, frozen_pairs, load_pair_densities
from bayes_adapters.speech._checks import (
    require_bernoulli,
    require_entries,
    require_short,
    require_task,
    require_trained_on,
    require_verifiable,
    require_words,
)
from bayes_adapters.speech.advice import LOW, beyond, strangers
from bayes_adapters.speech.advice import advice as advice
from bayes_adapters.speech.advice import claim as claim
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
        trusted: whether total and epistemic uncertainty are within the 90 % quantiles of validation pairs, the total
            within the range where at most 10 % of the answers were wrong, every saved risk threshold is kept, and a
            recording that is said to say the script belongs to it by the saved density on pairs.
        answers: ``no`` and ``yes`` as far as the saved conformal set holds them, which holds the right one with
            probability ``1 − alpha``; None where no set was saved.
        alpha: of that set.
        agreement: of recording and script, nats, by the saved density on pairs; None where none was saved.
        agreement_share: of matching validation pairs that agree no better, 0 to 1: see
            :meth:`bayes_adapters.reliability.PairDensity.p_value`.
    """

    probability: float
    total: float
    aleatoric: float
    epistemic: float
    words: str
    trusted: bool
    answers: tuple[str, ...] | None = None
    alpha: float | None = None
    agreement: float | None = None
    agreement_share: float | None = None


class Verifier:
    """A saved adapter with its encoders, ready for recordings.

    Args:
        model, guide: trained for the task; their device is used.
        tokenizer: of the text backbone.
        encoder: the frozen speech encoder.
        task: what the adapter says of itself.
        calibration: applied to every answer, in this order: a scaling to all that comes after it, and to the thresholds
            of ``task``, which must then be those of calibrated answers; a risk threshold and a set to what they are
            given.
        pairs: of the script's and the recording's frozen features.

    Raises:
        ConfigError: the model's likelihood is not ``Bernoulli``, or ``calibration`` holds something for numbers, for
            other classes than two, or two conformal sets.
    """

    def __init__(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        tokenizer: Any,
        encoder: SpeechEncoder,
        task: VerifyTask,
        calibration: Sequence[Calibration] = (),
        pairs: PairDensity | None = None,
    ) -> None:
        require_bernoulli(model.likelihood.name)
        require_verifiable(calibration)
        self.model, self.guide, self.tokenizer, self.encoder, self.task = model, guide, tokenizer, encoder, task
        self.calibration, self.pairs = calibration, pairs

    @classmethod
    def from_directory(cls, directory: str | Path, device: str = "auto") -> Verifier:
        """Load a saved adapter, what was fitted after training and saved with it, and the two backbones it names.

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
        pairs = load_pair_densities(directory).get("audio")
        calibration = load_calibration(directory)
        return cls(model, guide, tokenizer, encoder, task, calibration, None if pairs is None else pairs.to(place))

    def verify(
        self, recording: str | Path, script: str, *, samples: int = 32, seed: int = 0, local_samples: int = 1
    ) -> Verdict:
        """Answer for one pair.

        Args:
            recording: an audio file of at most ``task.max_seconds``.
            script: the text it should say, of at most ``task.max_tokens`` tokens and what the tokenizer allows.
            samples: posterior draws S, at least 2: one draw has no epistemic uncertainty, and would always be trusted.
            seed: of the draws; the same seed gives the same answer.
            local_samples: K draws of local latents with each of S draws of weights, see
                :func:`bayes_adapters.predict`: epistemic is then what the weights alone leave open. Thresholds that
                were saved with the adapter are those of K = 1.

        Raises:
            DataError: the recording or the script cannot be used.
            ConfigError: ``samples`` is below 2, or ``local_samples`` below 1 or for a model without local latents.
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
        draws: dict[str, Any] = {"num_samples": samples, "local_samples": local_samples, "seed": seed}
        answer = predict(self.model, self.guide, batch, return_samples=drawn, **draws)
        answer, kept, limited = self._calibrated(answer, seed)
        probability, total, epistemic = (float(v[0]) for v in (answer.probs, answer.total, answer.epistemic))
        sentence, trusted = advice(total, epistemic, self.task.thresholds)
        if trusted and limited:
            sentence, trusted = limited, False
        agreement, share = self._agreement(batch)
        if trusted and share is not None and share <= LOW and probability >= 0.4:  # a "no" is what it would say too
            sentence, trusted = strangers(share), False
        words = f"{claim(probability)} {sentence}"
        aleatoric = float(answer.aleatoric[0])
        return Verdict(probability, total, aleatoric, epistemic, words, trusted, *kept, agreement, share)

    def _calibrated(
        self, answer: Prediction, seed: int
    ) -> tuple[Prediction, tuple[tuple[str, ...] | None, float | None], str]:
        """Return the scaled answer, the set of answers with its α, and why a threshold does not trust it, if so."""
        kept: tuple[tuple[str, ...] | None, float | None] = (None, None)
        limited = ""
        for fitted in self.calibration:
            if isinstance(fitted, ConformalClasses):
                inside = fitted.sets(answer, seed=seed)[0].tolist()
                kept = tuple(name for name, held in zip(("no", "yes"), inside, strict=True) if held), fitted.alpha
            elif isinstance(fitted, RiskThreshold):
                value = float(getattr(answer, fitted.part)[0])
                if not bool(fitted(answer)[0]):
                    limited = limited or beyond(value, fitted.part, fitted.threshold, fitted.risk)
            elif isinstance(fitted, Scaling):
                answer = fitted(answer)
        return answer, kept, limited

    def _agreement(self, batch: Batch) -> tuple[float | None, float | None]:
        if self.pairs is None:
            return None, None
        inputs, contexts, _ = frozen_pairs(self.model, batch, "audio")
        return float(self.pairs.agreement(inputs, contexts)), float(self.pairs.p_value(inputs, contexts))


def as_stored(values: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Round frames to float16, as training read them from its cache: what is verified is what was trained on.

    >>> import torch
    >>> as_stored(torch.tensor([0.1])).float()
    tensor([0.1000])
    >>> as_stored(torch.tensor([0.1])).float().item() == torch.tensor(0.1).item()
    False
    """
    return values.half()
