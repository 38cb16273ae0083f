"""Which tensors of an adapter can be random: those of the published structures, and any that a structure brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from bayes_adapters.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A tensor of ``h = W₀ x + s · B E A (m ⊙ x)``, or of another structure, that a site may draw.

    A structure of a third party declares its own, as a constant beside its layer class, and names it in ``parts=`` of
    its model: ``SCALE = Part("scale", ("d_out",), diagonal=True)``.

    Args:
        name: begins the names of its sites, as in ``A.encoder.layer.0.query``; no two parts of a model share one.
        axes: the axes of one draw: ``"r"``, ``"d_in"`` and ``"d_out"`` are a layer's sizes, a number is itself. A
            matrix (n, k) acts as ``W x``; None where a draw belongs to no layer.
        real: whether its entries are real numbers. False: 0 or 1, a keep mask.
        diagonal: whether it has one axis, k, and acts as ``w ⊙ x``.
        divided: of entries that are 0 or 1, whether what is kept is divided by the prior's mean, as dropout does.

    >>> SCALE = Part("scale", ("d_out",), diagonal=True)
    >>> SCALE.event(2, 3, 4), Part.A.event(2, 3, 4), SCALE in REAL, Part.MASK in REAL
    ((4,), (2, 3), True, False)
    """

    name: str
    axes: tuple[str | int, ...] | None
    real: bool = field(default=True, kw_only=True)
    diagonal: bool = field(default=False, kw_only=True)
    divided: bool = field(default=True, kw_only=True)

    CORE: ClassVar[Part]
    """E, shape (r, r)."""
    DIAGONAL: ClassVar[Part]
    """The diagonal of E, shape (r,); the rest of E is zero."""
    A: ClassVar[Part]
    """A, shape (r, d_in)."""
    B: ClassVar[Part]
    """B, shape (d_out, r)."""
    MASK: ClassVar[Part]
    """m, shape (d_in,): 0 or 1; what is kept is divided by the prior's mean."""
    GATE: ClassVar[Part]
    """g, shape (r,): 0 or 1, which ranks there are; not divided by anything."""
    NOISE: ClassVar[Part]
    """η, shape (r, d_in): what the entries of A are multiplied by, 1 on average."""
    CROSS: ClassVar[Part]
    """Φ, the core of a path between modalities, shape (r_C, r_C); see :mod:`bayes_adapters.modalities.inter_path`."""
    FACTOR: ClassVar[Part]
    """A factor of a multiplicative fusion, of any shape; see :class:`bayes_adapters.models.Wander`."""

    def event(self, rank: int, d_in: int, d_out: int) -> tuple[int, ...]:
        """Return the shape of one draw for a layer of these sizes.

        Raises:
            ConfigError: the part belongs to no layer, or an axis is none of ``"r"``, ``"d_in"`` and ``"d_out"``.
        """
        sizes = {"r": rank, "d_in": d_in, "d_out": d_out}
        wrong = [axis for axis in self.axes or () if isinstance(axis, str) and axis not in sizes]
        if self.axes is None or wrong:
            what = f"the axis {wrong[0]!r}" if wrong else "no axes: it belongs to no layer"
            raise ConfigError(f"The part {self.name!r} has {what}. A layer's are {', '.join(sizes)}, or a number.")
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    @property
    def rank_axis(self) -> int | None:
        """The axis of a draw along which the ranks lie; None where there is none."""
        return self.axes.index("r") if self.axes and "r" in self.axes else None

    @property
    def value(self) -> str:
        """The name, which sites' names begin with."""
        return self.name

    def __deepcopy__(self, memo: object) -> Part:
        return self  # a copied layer's parts are the same constants, so ``is`` holds in it too

    def __reduce__(self) -> tuple[Any, ...]:
        return _constant, (self.name, self.axes, self.real, self.diagonal, self.divided)


Part.CORE = Part("core", ("r", "r"))
Part.DIAGONAL = Part("diagonal", ("r",), diagonal=True)
Part.A = Part("A", ("r", "d_in"))
Part.B = Part("B", ("d_out", "r"))
Part.MASK = Part("mask", ("d_in",), real=False, diagonal=True)
Part.GATE = Part("gate", ("r",), real=False, diagonal=True, divided=False)
Part.NOISE = Part("noise", ("r", "d_in"))
Part.CROSS = Part("cross", ("r", "r"))
Part.FACTOR = Part("factor", None)


def _constant(name: str, axes: tuple[str | int, ...] | None, real: bool, diagonal: bool, divided: bool) -> Part:
    """The part that was pickled: one of the constants where it is theirs."""
    part = Part(name, axes, real=real, diagonal=diagonal, divided=divided)
    return next((own for own in (*REAL, Part.MASK, Part.GATE) if own == part), part)


class _EveryReal(frozenset[Part]):
    """The real-valued parts: those named here and, by what they say of themselves, those of third parties."""

    def __contains__(self, part: object) -> bool:
        return isinstance(part, Part) and part.real


REAL: frozenset[Part] = _EveryReal({Part.CORE, Part.DIAGONAL, Part.A, Part.B, Part.NOISE, Part.CROSS, Part.FACTOR})
"""Every real-valued part, third parties' too: all but masks and gates."""
