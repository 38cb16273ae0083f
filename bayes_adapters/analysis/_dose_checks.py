"""What a dose–response comparison refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, whole_number
from bayes_adapters.likelihoods import Prediction


def check_doses(
    predictions: Mapping[float, Prediction], marginal: Tensor | None, draws: int
) -> tuple[tuple[float, ...], list[Prediction]]:
    """Return doses and predictions in the order of the doses; see ``dose_response`` for what is allowed."""
    whole_number("draws", draws)
    if any(isinstance(dose, bool) or not isinstance(dose, Real) for dose in predictions):
        raise ConfigError(
            f"Doses are numbers that rise as the input gets worse; got {list(predictions)[:8]}. What they are called "
            "is said by dose_response_plot(ticks=…)."
        )
    doses = tuple(sorted(float(dose) for dose in predictions))
    if len(doses) < 2 or any(math.isnan(dose) for dose in doses):
        raise ConfigError(f"A dose–response comparison needs at least two doses, none of them NaN; got {list(doses)}.")
    ordered = [prediction for _, prediction in sorted(predictions.items(), key=lambda item: float(item[0]))]
    shapes = {tuple(prediction.total.shape) for prediction in ordered}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1 or next(iter(shapes))[0] < 2:
        raise DataError(
            "Every dose needs one uncertainty for each of the same examples, at least two; got the shapes "
            f"{sorted(shapes)}. Of several labels or tokens per example take prediction.summed()."
        )
    parts = [(p.total, p.aleatoric, p.epistemic) for p in ordered]
    bad = [d for d, values in zip(doses, parts, strict=True) if any(bool(v.isnan().any()) for v in values)]
    if bad:
        raise DataError(
            f"At the doses {bad[:8]} an uncertainty is NaN, which has no rank. Leave these examples out at "
            "every dose, or look at what the model says of them."
        )
    scored = sum(prediction.log_density is not None for prediction in ordered)
    if scored not in (0, len(ordered)):
        raise DataError(f"{scored} of {len(ordered)} doses have targets. Give all of them targets, or none.")
    if marginal is not None and (tuple(marginal.shape) not in shapes or not scored):
        raise DataError(
            f"marginal is −log p₀(y) of each target, shape {next(iter(shapes))}, and needs targets at every dose; got "
            f"shape {tuple(marginal.shape)} and {scored} doses with targets."
        )
    return doses, ordered
