"""What the start of inducing points refuses: another head, no data, and more points than the data have."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.heads.gaussian_process import GaussianProcessHead, InducingPosterior


def require_process(head: object, posterior: object) -> tuple[GaussianProcessHead, InducingPosterior]:
    """Return head and posterior; raise :class:`ConfigError` unless they are those of a Gaussian process."""
    if not isinstance(head, GaussianProcessHead) or not isinstance(posterior, InducingPosterior):
        raise ConfigError(
            f"initialise() sets the inducing points of a GaussianProcessHead; this model's head is a "
            f"{type(head).__name__}. Build the model with head=GaussianProcessHead()."
        )
    return head, posterior


def require_features(num_inducing: int, features: Tensor) -> None:
    """Raise unless there are at least as many different features as inducing points.

    Raises:
        DataError: there are none.
        ConfigError: there are too few.
    """
    if not len(features):
        raise DataError("There are no features: the data holds no batch. Was a generator already exhausted?")
    different = len(torch.unique(features, dim=0))
    if num_inducing > different:
        raise ConfigError(
            f"num_inducing={num_inducing} inducing points are more than the {different} different features of "
            f"{len(features)} examples, and more cannot tell more. Take GaussianProcessHead({different}) or fewer, or "
            "give more data."
        )
