"""What models check before they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from bayes_adapters.data.batch import Batch
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
    placed = dict(tensors)
    if isinstance(batch.targets, Mapping):
        placed |= {f"targets[{k!r}]": v for k, v in batch.targets.items()}
    elif batch.targets is not None:
        placed["targets"] = batch.targets
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
