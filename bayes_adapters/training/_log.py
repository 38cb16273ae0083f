"""From the numbers of single steps to those of an epoch."""

from __future__ import annotations

from bayes_adapters.inference.elbo import ElboTerms
from bayes_adapters.training._monitor_checks import not_a_number, require_metrics, require_new

STEP_METRICS = ("loss", "nll", "kl", "kl_over_nll", "kl_weight", "lr", "grad_norm", "examples_per_second")
"""In every epoch's log."""
SOMETIMES = ("scale_mean", "scale_min", "scale_max", "attention_entropy")
"""In the log where the guide has scales, or attends."""
_MERGED = {"scale_min": min, "scale_max": max}


def scales(parts: list[tuple[float, ElboTerms]]) -> dict[str, float]:
    """Merge the scale statistics of micro-batches, each with its share of the examples."""
    logs = [(share, terms.log()) for share, terms in parts]
    out: dict[str, float] = {}
    for name in SOMETIMES[:3]:
        values = [(share, log[name]) for share, log in logs if name in log]
        if values:
            out[name] = _merge(name, values)
    return out


def summarise(records: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Average step records over an epoch, weighted by examples; scale_min and scale_max are the epoch's extremes.

    >>> steps = [{"examples": 3, "nll": 1.0, "kl": 0.5}, {"examples": 1, "nll": 5.0, "kl": 0.5}]
    >>> summarise(steps, seconds=2.0)
    {'nll': 2.0, 'kl': 0.5, 'kl_over_nll': 0.25, 'examples_per_second': 2.0}
    """
    out: dict[str, float] = {}
    for name in dict.fromkeys(name for record in records for name in record if name != "examples"):
        out[name] = _merge(name, [(record["examples"], record[name]) for record in records if name in record])
    out["kl_over_nll"] = ratio(out["kl"], out["nll"])
    examples = sum(record["examples"] for record in records)
    out["examples_per_second"] = ratio(examples, seconds)
    return out


def ratio(a: float, b: float) -> float:
    """Return a / b, NaN where b is 0."""
    return a / b if b else float("nan")


def merge_evaluation(log: dict[str, float], found: object) -> None:
    """Add what ``evaluate`` returned to an epoch's log.

    Raises:
        ConfigError: not a mapping from names to numbers, or a name the log already has.
    """
    for name, value in require_metrics(found).items():
        require_new(name, log)
        try:
            log[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise not_a_number(name, value) from error


def _merge(name: str, values: list[tuple[float, float]]) -> float:
    if name in _MERGED:
        return _MERGED[name](value for _, value in values)
    return sum(weight * value for weight, value in values) / sum(weight for weight, _ in values)
