"""What corruptions of a waveform and the verification of a recording refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bayes_adapters.errors import AdapterFileError, ConfigError, DataError, near_matches


def require_condition(name: str, kind: str, noisy: tuple[str, ...], plain: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` unless ``kind``, the first part of a condition's ``name``, exists."""
    if kind not in noisy + plain:
        raise ConfigError(
            f"Unknown condition {name!r}.{near_matches(kind, noisy + plain)} Allowed: {', '.join(plain)}, "
            f"{', '.join(f'{k}@<SNR in dB>' for k in noisy)}, for example white@10."
        )


def require_kinds(kinds: Sequence[str], noisy: tuple[str, ...], plain: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` unless there are kinds of conditions and all of them exist."""
    if isinstance(kinds, str) or not kinds:
        raise ConfigError(f"kinds is a list of {', '.join(plain + noisy)}; got {kinds!r}.")
    for kind in kinds:
        if kind not in noisy + plain:
            raise ConfigError(
                f"Unknown kind {kind!r}.{near_matches(kind, noisy + plain)} Allowed: {', '.join(plain + noisy)}; the "
                "strength of a noise is snr_db=."
            )


def require_no_strength(name: str, kind: str, at: str) -> None:
    """Raise :class:`ConfigError` where a condition that takes no strength has one."""
    if at:
        raise ConfigError(f"Condition {kind!r} takes no strength; got {name!r}. Write {kind!r}.")


def require_finite_snr(name: str, kind: str, snr_db: float) -> None:
    """Raise :class:`ConfigError` unless the signal-to-noise ratio of a noise is finite."""
    if not math.isfinite(snr_db):
        raise ConfigError(f"Condition {name!r} needs a finite signal-to-noise ratio in dB, for example {kind}@10.")


def required_snr(kind: str, snr_db: float | None) -> float:
    """Return the signal-to-noise ratio of a noise; raise :class:`ConfigError` where there is none."""
    if snr_db is None:
        raise ConfigError(f"Condition {kind!r} needs snr_db, for example Condition('{kind}', 10.0).")
    return snr_db


def require_same_length(wave: Tensor, noise: Tensor) -> None:
    """Raise :class:`DataError` unless recording and noise have one shape (N,)."""
    if wave.shape != noise.shape or wave.dim() != 1:
        raise DataError(
            f"Recording and noise must both have shape (N,); got {tuple(wave.shape)} and {tuple(noise.shape)}. "
            "Loop or crop the noise to the recording's length."
        )


def require_powers(powers: Mapping[str, float], snr_db: float) -> None:
    """Raise :class:`DataError` unless every power is positive and finite."""
    for what, power in powers.items():
        if not (math.isfinite(power) and power > 0):
            raise DataError(
                f"The {what} has power {power:g}: a signal-to-noise ratio of {snr_db:g} dB cannot be set. "
                "Is it silent, empty, or does it hold NaN?"
            )


def require_recordings(waves: Sequence[Tensor]) -> None:
    """Raise :class:`DataError` where babble has no recording."""
    if not waves:
        raise DataError(
            "Babble needs at least one other recording; got none. Pass others=[...] with recordings of the split."
        )


def require_babble_power(number: int, power: float) -> None:
    """Raise :class:`DataError` unless the power of recording ``number`` of the babble is positive and finite."""
    if not (math.isfinite(power) and power > 0):
        raise DataError(f"Recording {number} of the babble has power {power:g}. Drop silent or broken recordings.")


def require_rt60(rt60: float) -> None:
    """Raise :class:`ConfigError` unless the reverberation time is positive."""
    if not rt60 > 0:
        raise ConfigError(f"rt60 must be a positive number of seconds; got {rt60}. A living room has about 0.4.")


def require_gain(gain_db: float) -> None:
    """Raise :class:`ConfigError` where the gain is negative."""
    if not gain_db >= 0:
        raise ConfigError(f"gain_db must be at least 0 dB; got {gain_db}. A negative gain only makes it quieter.")


def require_task(task: Mapping[str, Any], wanted: str, directory: str | Path) -> None:
    """Raise :class:`AdapterFileError` where the adapter in ``directory`` was saved for another task."""
    if task.get("task") != wanted:
        raise AdapterFileError(
            f"The adapter in {str(directory)!r} was saved for the task {task.get('task')!r}, not for {wanted!r}. "
            "Give one that examples/studies/verify_prompts saved, such as runs/demo/adapter."
        )


def require_entries(task: Mapping[str, Any], thresholds: Sequence[str], directory: str | Path) -> None:
    """Raise :class:`AdapterFileError` unless every entry of a saved task, and every threshold, is there and sound."""
    found = task.get("thresholds")
    given = found if isinstance(found, dict) else {}
    right = {
        "text_backbone": isinstance(task.get("text_backbone"), str),
        "speech_encoder": isinstance(task.get("speech_encoder"), str),
        "max_seconds": _is_positive(task.get("max_seconds")),
        "frames_per_second": task.get("frames_per_second") in (1, 2, 5, 10, 25, 50),
        "max_tokens": isinstance(task.get("max_tokens"), int) and _is_positive(task.get("max_tokens")),
        "calibration": isinstance(task.get("calibration", {}), dict),
        "speech_fingerprint": isinstance(task.get("speech_fingerprint"), str | None),
    } | {f"thresholds.{name}": _is_positive(given.get(name), zero=True) for name in thresholds}
    wrong = [name for name, fine in right.items() if not fine]
    if wrong:
        raise AdapterFileError(
            f"The task of the adapter in {str(directory)!r} lacks or misstates {', '.join(wrong)}. Train and save "
            "it again with this version of examples/studies/verify_prompts."
        )


def require_words(script: str) -> None:
    """Raise :class:`DataError` where a script is no text, or has no word."""
    if any("\ud800" <= character <= "\udfff" for character in script):  # what the shell gave was no UTF-8
        raise DataError(
            f"The script {script!r} holds bytes that are no text in UTF-8. Save it in that encoding, or set the "
            "terminal to it."
        )
    if not any(character.isalnum() for character in script):
        raise DataError(f"The script {script!r} has no word. Give the text that the recording should say.")


def require_bernoulli(name: str) -> None:
    """Raise :class:`ConfigError` unless the likelihood's ``name`` is that of ``Bernoulli``."""
    if name != "bernoulli":
        raise ConfigError(f"Verifying needs the likelihood 'bernoulli'; the model has {name!r}.")


def require_verifiable(calibration: Sequence[Any]) -> None:
    """Raise :class:`ConfigError` for what was fitted to something else than answers yes or no, or for two sets."""
    for fitted in calibration:
        classes = len(fitted.weight) if fitted.name == "vector" else getattr(fitted, "classes", 2)
        if fitted.name in {"deviation", "conformal_intervals", "conformal_quantiles"} or classes != 2:
            what = f"{classes} classes" if classes != 2 else "numbers"
            raise ConfigError(
                f"Verifying answers yes or no, and {fitted.name!r} of the calibration is for {what}. Save the adapter "
                "with what was fitted to its own predictions of validation pairs."
            )
    sets = [fitted for fitted in calibration if fitted.name == "conformal_classes"]
    if len(sets) > 1:
        raise ConfigError(
            f"The calibration holds {len(sets)} conformal sets, with alpha {', '.join(f'{s.alpha:g}' for s in sets)}; "
            "a verdict has one. Save the adapter with the one that is meant."
        )


def require_trained_on(encoder: str, found: str, wanted: str | None, directory: str | Path) -> None:
    """Raise :class:`AdapterFileError` where an adapter was trained on frames of another speech encoder.

    Args:
        encoder: name or folder of the speech encoder.
        found: its fingerprint.
        wanted: the fingerprint that the adapter names; None where an older version saved none.
        directory: of the adapter, for the error.
    """
    if wanted not in (None, found):
        raise AdapterFileError(
            f"The adapter in {str(directory)!r} was trained on frames of a speech encoder with fingerprint "
            f"{wanted}; {encoder!r} here has {found}. Its weights come from another source, "
            "or its settings differ. Give the encoder it was trained with, or train again."
        )


def require_short(count: int, limit: int) -> None:
    """Raise :class:`DataError` where a script of ``count`` tokens is longer than ``limit``."""
    if count > limit:
        raise DataError(
            f"The script is too long: {count} tokens, at most {limit} are allowed. Cut script and recording."
        )


def _is_positive(value: Any, zero: bool = False) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and (value > 0 or (zero and value == 0))
