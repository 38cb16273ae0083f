"""What a multiplicative fusion refuses."""

from __future__ import annotations

from collections.abc import Mapping

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError, DataError, near_matches
from bayes_adapters.models.multiplicative.factors import FusionFactors


def missing(name: str, rows: list[int]) -> DataError:
    """Examples in ``rows`` lack the modality ``name``, and nothing stands in for it."""
    return DataError(
        f"Rows {rows[:8]} have no real token of {name!r} and its factors no null value to stand in for it. Drop these "
        "examples, or give ModalityFactors null=torch.ones(d) (CPFusion: null=True)."
    )


def check_sequences(sequences: Mapping[str, Frames], factors: FusionFactors) -> int:
    """Return the number of rows.

    Raises:
        ConfigError: a modality without factors.
        DataError: no sequences, or some that differ in rows or are not as wide as the factors.
    """
    names = list(factors.modalities)
    if not sequences:
        raise DataError(f"There is no sequence to fuse; give some of {names}. A missing modality may be left out.")
    for name in sequences:
        if name not in names:
            raise ConfigError(f"No factors for the modality {name!r}; there are {names}.{near_matches(name, names)}")
    shapes = {name: tuple(frames.values.shape) for name, frames in sequences.items()}
    if {shape[2] for shape in shapes.values()} != {factors.width}:
        raise DataError(
            f"Every sequence must be as wide as the factors, d = {factors.width}; got shapes (rows, T, d) = {shapes}. "
            "Project each modality to one width first."
        )
    rows = {shape[0] for shape in shapes.values()}
    if len(rows) > 1 or rows == {0}:
        raise DataError(f"Every sequence must have the same number of rows, at least 1; got shapes {shapes}.")
    return rows.pop()
