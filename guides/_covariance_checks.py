"""What guides refuse of the covariance of many weights: one that is too large for the memory."""

from __future__ import annotations

from collections.abc import Mapping

from bayes_adapters.errors import ConfigError, positive_number


def require_factor_memory(size: int, rank: int, most: float) -> None:
    """Raise :class:`ConfigError` if W, ``size`` entries by ``rank`` directions, takes more than ``most`` gigabytes."""
    positive_number("max_gigabytes", most)
    needed = 4e-9 * size * rank
    if needed <= most:
        return
    fits = int(most / (4e-9 * size))
    fewer = f"covariance_rank={fits} or fewer fit; or take" if fits else "Take"
    raise ConfigError(
        f"{rank} directions over {size:,} weights take {needed:.3g} GB, and four times that in training; "
        f"max_gigabytes={most:g}. {fewer} a smaller rank of the adapters, a guide with one block per layer, such as "
        "FullGaussian(over='layer') or MatrixNormal, or raise max_gigabytes=."
    )


def require_memory(over: str, needs: Mapping[str, int], most: float) -> None:
    """Raise :class:`ConfigError` if the square root of a covariance would take more than ``most`` gigabytes.

    Args:
        over: the choice that was made.
        needs: choice → numbers of float32 that it keeps.
        most: the limit, gigabytes.
    """
    size = {name: 4e-9 * numbers for name, numbers in needs.items()}
    if size[over] <= most:
        return
    others = [f"over={name!r} it takes {size[name]:.3g} GB" for name in size if size[name] <= most]
    raise ConfigError(
        f"A dense covariance with over={over!r} takes {size[over]:.3g} GB for its square root, and four times that in "
        f"training; max_gigabytes={most:g}. " + "".join(f"With {other}. " for other in others) + "The "
        "guide LowRank keeps correlations over all weights in k + 2 numbers per entry; or take a smaller rank, or "
        "raise max_gigabytes=."
    )
