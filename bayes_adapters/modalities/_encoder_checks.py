"""What a batch or a backbone of several encoders is refused for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from jaxtyping import Bool
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError, DataError, near_matches


def require_own(key: str, name: str, argument: str, names: Sequence[str]) -> None:
    """Raise :class:`DataError` unless the input ``key`` is ``<encoder>.<argument>`` of a known encoder."""
    if name not in names or not argument:
        raise DataError(
            f"The input {key!r} belongs to no encoder; inputs are named <encoder>.<argument>, for example "
            f"{names[0]}.input_ids.{near_matches(name, names)} Encoders: {', '.join(names)}."
        )


def require_flags(key: str, value: Tensor) -> None:
    """Raise :class:`DataError` unless the marks of a modality's presence have shape (B,)."""
    if value.dim() != 1:
        raise DataError(f"{key} must have shape (B,), one entry per example; got {tuple(value.shape)}.")


def by_segment(key: str, value: Tensor, each: int) -> Tensor:
    """Return an input (B, n, …) with the n segments as rows of their own, (B·n, …); marks of presence may be (B,).

    Raises:
        DataError: it has no axis of ``each`` segments.
    """
    if value.dim() == 1 and key.endswith(".present"):
        return value.repeat_interleave(each)
    if value.dim() < 2 or value.shape[1] != each:
        raise DataError(
            f"inputs[{key!r}] must have shape (B, {each}, …), since each of {each} segments of an example runs on its "
            f"own; got {tuple(value.shape)}. If an encoder reads whole examples, leave separate=True out."
        )
    return value.flatten(0, 1)


def require_inputs(
    calls: Iterable[str], present: Mapping[str, Bool[Tensor, " rows"]], names: Sequence[str], size: int
) -> None:
    """Raise :class:`DataError` where no encoder has inputs, or examples have a modality of which there are none.

    Args:
        calls: encoders with inputs.
        present: encoder → shape (rows,), True where the example has this modality.
        names: all encoders.
        size: examples of the batch, B; the rows are repetitions of them.
    """
    if not (called := set(calls)):
        raise DataError(f"The batch has inputs of none of the encoders {names}.")
    for name in present.keys() - called:
        if having := present[name][:size].nonzero().flatten().tolist():
            raise DataError(
                f"Rows {having[:8]} have the modality {name!r}, as {name}.present or a mask of it says, and the "
                f"batch has no input of this encoder, such as {name}.input_ids or {name}.input_values. Add it; "
                "where the whole batch lacks the modality leave the mark out, or set it to 0."
            )


def require_encoders(backbone: nn.Module, least: int, what: str) -> nn.ModuleDict:
    """Return ``backbone`` if it is a dictionary of at least ``least`` modules, no two of them the same one.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(backbone, nn.ModuleDict) or len(backbone) < least:
        held = f" of {len(backbone)} modules" if isinstance(backbone, nn.ModuleDict) else ""
        raise ConfigError(
            f"{what} needs at least {least} encoders: pass backbone=nn.ModuleDict({{'text': ..., 'audio': ...}}); got "
            f"{type(backbone).__name__}{held}."
        )
    for first, second in combinations(backbone, 2):
        if backbone[first] is backbone[second]:
            raise ConfigError(
                f"The encoders {first!r} and {second!r} of {what} are one module; torch lists it under the first name "
                f"only. Load it twice, or copy it: copy.deepcopy(encoder)."
            )
    return backbone
