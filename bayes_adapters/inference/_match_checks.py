"""What refuses to compare queries with a gallery."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import Bernoulli, Candidates, Contrastive, Likelihood


def require_comparing(likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood has embeddings, or a score for each pair."""
    if not isinstance(likelihood, Contrastive | Candidates | Bernoulli):
        raise ConfigError(
            f"similarities() compares by embeddings (Contrastive) or by a score for each pair (Candidates, Bernoulli); "
            f"got a model with {type(likelihood).__name__}."
        )


def require_gallery(queries: Sequence[Batch], gallery: Sequence[Batch]) -> None:
    """Raise :class:`DataError` where nobody asks, or there is nothing to choose from."""
    if not queries:
        raise DataError("There is nothing to compare: queries hold no batch. Was a generator already exhausted?")
    count = sum(batch.size for batch in gallery)
    if count < 2:
        raise DataError(
            f"The gallery holds {count} candidates: a choice needs two or more. Are queries and gallery swapped, or "
            "was a generator used up?"
        )


def require_side(batch: object, which: str, names: Sequence[str] = (), there: bool = True) -> None:
    """Raise :class:`DataError` unless this is a batch with inputs of one of the encoders ``names``."""
    if not isinstance(batch, Batch):
        raise DataError(f"similarities() takes a Batch or an iterable of them; {which} has a {type(batch).__name__}.")
    if not there:
        raise DataError(
            f"The {which} have inputs {sorted(batch.inputs)}, and none of the encoders {list(names)} of that side. "
            "Queries are of one side and the gallery of the other; inputs are named <encoder>.<argument>."
        )


def require_own_side(which: str, names: Sequence[str], missing: Tensor) -> None:
    """Raise :class:`DataError` where examples lack the side by which they are compared."""
    refuse_where(
        missing,
        lambda: DataError(
            f"Rows {missing.nonzero().flatten()[:8].tolist()} of a batch of the {which} lack {' and '.join(names)}, by "
            "which they are compared. Leave them out."
        ),
    )
