"""What models check before they run, and the two small things they all do: repeat rows, and know a backbone's width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.batch import TOKEN_MASK, Batch
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError, near_matches


def checked_ranks(ranks: Mapping[str, int], paths: Sequence[str], rank: int) -> Mapping[str, int]:
    """Return ``ranks``; raise :class:`ConfigError` if it names no adapted layer or a rank outside 0 … ``rank``."""
    unknown = [path for path in ranks if path not in paths]
    wrong = [f"{path!r}: {left}" for path, left in ranks.items() if not (isinstance(left, int) and 0 <= left <= rank)]
    if unknown:
        first = f", the first is {paths[0]!r}" if paths else ""
        raise ConfigError(
            f"ranks names {unknown[0]!r}, which is no adapted layer.{near_matches(unknown[0], paths)} It maps paths of "
            f"adapted layers to ranks; there are {len(paths)}{first}."
        )
    if wrong:
        raise ConfigError(f"ranks must be whole numbers from 0 to rank={rank}; got {', '.join(wrong[:4])}.")
    return ranks


def require_trainable(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where parameters could never be trained."""
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"The backbone must be a torch module; got a {type(backbone).__name__}.")
    if torch.is_inference_mode_enabled():
        raise ConfigError("Build models outside torch.inference_mode(): what is made inside can never be trained.")


def require_withholdable(names: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for the first of ``names`` that cannot be withheld."""
    for name in names:
        if name not in allowed:
            raise ConfigError(
                f"There is no modality {name!r} to withhold.{near_matches(name, allowed)} Of this model and batch can "
                f"be withheld: {', '.join(allowed) or 'none'}. The own inputs of a model's only backbone cannot be."
            )


def check_batch(batch: Batch, device: torch.device) -> None:
    """Refuse a batch that the model on ``device`` cannot take.

    Raises:
        DataError: a part of it is on another device.
        NonFiniteError: an input or a context frame is NaN or infinite.
    """
    tensors = {f"inputs[{k!r}]": v for k, v in batch.inputs.items()}
    tensors |= {f"context[{k!r}]": v.values for k, v in batch.context.items()}
    placed = tensors if batch.targets is None else tensors | {"targets": batch.targets}
    for name, value in placed.items():
        if value.device != device:
            raise DataError(
                f"{name} is on {value.device} and the model on {device}. Call batch.to({str(device)!r}); fit and "
                "predict do that themselves."
            )
    for name, value in tensors.items():
        # One sum is 20 times cheaper than looking at every element; only a sum that is not finite needs that look.
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            rows = (~torch.isfinite(value)).reshape(len(value), -1).any(-1).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"{name} holds NaN or infinite values in rows {rows[:8]}. Look at these examples' features; a "
                "silent or corrupt recording, or a division by zero in normalisation, is the usual cause. No weight "
                "was changed."
            )


def require_length(
    mask: Tensor, positions: int, where: str, key: str = f"inputs['{TOKEN_MASK}']", otherwise: str = ""
) -> None:
    """Raise :class:`DataError` unless ``mask`` has shape (rows, ``positions``).

    Args:
        mask: what marks real positions.
        positions: how many there are.
        where: what has them, with its verb, for the message: ``"the backbone returns"``.
        key: the entry of the batch that holds a mask of another length than the inputs'.
        otherwise: other remedies, for the message.
    """
    if mask.shape[1:] != (positions,):
        raise DataError(
            f"The mask of tokens has shape {tuple(mask.shape)} where {where} {positions} positions. If the backbone "
            f"changes the length (wav2vec 2.0, Whisper), pass a mask of the new length as {key}{otherwise}."
        )


def fold(value: Tensor, samples: int) -> Tensor:
    """Repeat the rows of ``value`` (B, …) for every sample: shape (S·B, …) in the order [S, B]."""
    return value if samples == 1 else value.repeat(samples, *[1] * (value.dim() - 1))


def hidden_width(backbone: nn.Module) -> int:
    """Return the width of a Hugging Face model's hidden states, from its config."""
    config = getattr(backbone, "config", None)
    for name in ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd"):  # OPT-350m projects its hidden states
        width = getattr(config, name, None)
        if isinstance(width, int):
            return width
    raise ConfigError(
        f"The config of {type(backbone).__name__} has no hidden_size, d_model or n_embd: pass a Hugging Face backbone."
    )


def last_hidden_state(output: Any, backbone: nn.Module) -> Float[Tensor, "rows T d"]:
    """Return the last hidden states of what ``backbone`` returned, of the width that its config names.

    Raises:
        ConfigError: there are none, or they have another shape or width.
    """
    hidden, name = getattr(output, "last_hidden_state", None), type(backbone).__name__
    if hidden is None:
        raise ConfigError(
            f"{name} returns a {type(output).__name__} without last_hidden_state. Pass the transformer without a task "
            "head, as AutoModel.from_pretrained(...) makes it, with return_dict=True."
        )
    width = hidden_width(backbone)
    if hidden.dim() != 3 or hidden.shape[-1] != width:
        raise ConfigError(
            f"{name} returns hidden states of shape {tuple(hidden.shape)} and must return (rows, T, {width}), as wide "
            "as its config says. Reformer's are twice as wide, and those of wav2vec 2.0 with add_adapter=True may be "
            "of another width, while convolutional networks return maps: wrap the backbone in a module that returns "
            "(rows, T, d) and whose config.hidden_size is d."
        )
    return hidden
