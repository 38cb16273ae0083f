"""What model, guide and prediction check, beside the mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

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


def require_finite(model: nn.Module, what: str, values: Tensor, examples: int) -> None:
    """Raise :class:`NonFiniteError` if ``values`` are NaN or infinite for an example.

    Entropies of such numbers may look like certainty: NaN is not greater than 0, and an infinite logit is a
    probability of 1.

    Args:
        model: its parameters are looked at for the cause.
        what: names ``values`` in the error.
        values: shape (S·B, …) in the order [S, B].
        examples: B.
    """
    # One sum is cheaper than looking at every element; only a sum that is not finite needs that look.
    if bool(values.sum().isfinite()) or bool(values.isfinite().all()):
        return
    bad = (~values.isfinite()).reshape(values.shape[0], -1).any(-1).reshape(-1, examples).any(0)
    raise non_finite(f"{what} NaN or infinite in rows {bad.nonzero().flatten().tolist()[:8]} of the batch", model)


def non_finite(what: str, *modules: nn.Module) -> NonFiniteError:
    """Build the error for numbers that are not finite, naming the first tensor of ``modules`` that is not."""
    tensors = [(n, t) for m in modules for n, t in [*m.named_parameters(), *m.named_buffers()]]
    broken = next((name for name, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())), None)
    cause = (
        "The model's own tensors are finite: look at the guide's, at these examples' inputs for values far outside "
        "those of training, and at the backbone's precision, as float16 overflows above 65504."
        if broken is None
        else f"The tensor {broken!r} holds NaN or infinity: training diverged, or the file it comes from is damaged. "
        "Train again with a lower learning rate or clip_norm, or load an earlier checkpoint."
    )
    return NonFiniteError(f"{what}. {cause}")
