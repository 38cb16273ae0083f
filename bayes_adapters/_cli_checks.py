"""What the command line refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bayes_adapters.errors import ConfigError, NonFiniteError

_MOST_SAMPLES = 10_000


def require_output(stream: object) -> None:
    """Raise :class:`ConfigError` where the standard output is closed."""
    if stream is None:
        raise ConfigError("The standard output is closed, so there is nowhere to write the answer to.")


@contextmanager
def building(name: str) -> Iterator[None]:
    """Turn what transformers raises while it builds the model ``name`` into :class:`ConfigError`."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError, RuntimeError,
            StrictDataclassError) as error:  # fmt: skip
        reason = (
            "it needs Python code of its own (auto_map), which this command does not run."
            if "trust_remote_code" in str(error)
            else error
        )
        raise ConfigError(
            f"{name!r} holds no model that transformers can build: {reason} Give a folder with the config.json of one."
        ) from error


def require_samples(samples: int, local_samples: int = 1) -> None:
    """Raise :class:`ConfigError` unless there are 2 to 10,000 draws, those within each counted."""
    if local_samples < 1:
        raise ConfigError(f"--local-samples must be at least 1; got {local_samples}.")
    if samples <= _MOST_SAMPLES < samples * local_samples:
        raise ConfigError(
            f"--samples {samples} times --local-samples {local_samples} must be at most {_MOST_SAMPLES:,} draws."
        )
    if samples < 2:
        raise ConfigError(f"--samples must be at least 2, for one draw cannot disagree; got {samples}.")
    if samples > _MOST_SAMPLES:
        raise ConfigError(
            f"--samples must be at most {_MOST_SAMPLES:,}, for all draws are held in memory; got {samples}. "
            "The error of an average of 1,000 draws is below .02 already."
        )


def require_answer(numbers: Sequence[float]) -> None:
    """Raise :class:`NonFiniteError` where a number of the answer is NaN or infinite."""
    if not all(math.isfinite(number) for number in numbers):
        raise NonFiniteError(
            f"The model answers with {', '.join(f'{number:g}' for number in numbers)}, which is no answer. Its weights "
            "or those of an encoder are damaged: load the encoders again, or train the adapter again."
        )
