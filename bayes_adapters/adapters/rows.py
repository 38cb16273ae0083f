"""Which rows of a layer's input belong to which sample and example of a pass.

S·B examples × samples run as one batch, samples outermost. A layer sees them in one of these layouts::

    (S·B, *T, k)       one row for each, its tokens on further axes            most layers
    (S·B·T, k)         the tokens of each one after the other                  OPT's feed-forward part
    (S·B·w, T', k)     an example's w windows one after the other              Swin
    (T, S·B, k)        tokens first                                            Longformer's attention, XLNet
    anything else      a table that all share, or some of the tokens           DeBERTa's positions, routed experts

Nothing is guessed from divisibility: the number of tokens T is read from the batch, and windows are known blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.adapters._checks import foreign_rows, same_sides, uneven_windows, unknown_rows
from bayes_adapters.data.batch import TOKEN_MASK, Batch

_EXPERT = re.compile(r"(^|\.)experts?(_?\d+)?(\.|$)")
"""A routed expert: it sees the tokens that chose it, in the order of the choices."""
_NUMBERED = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Rows:
    """The layout of a pass.

    Args:
        batch: what the model was called with, B examples.
        outer: sizes of the sample plates around the model, outermost first; their product is S.
        windows: layer → the block around it that attends within windows; other layers are left out.
        both_layouts: whether the backbone has layers that see (T, S·B, k) beside those that see (S·B, T, k).
        each: rows of an example, where its segments run as rows of their own; the order is [sample, example, segment].
    """

    batch: Batch
    outer: tuple[int, ...] = ()
    windows: Mapping[str, str] = field(default_factory=dict)
    both_layouts: bool = False
    each: int = 1

    @property
    def samples(self) -> int:
        """S."""
        return math.prod(self.outer)

    @property
    def count(self) -> int:
        """S·B, times the rows of an example."""
        return self.samples * self.batch.size * self.each

    def length(self, layer: str) -> int | None:
        """Return T, the tokens of an example in the stream that ``layer`` is in; None where the batch does not say.

        An image or a recording has tokens of the backbone's making. A decoder's stream is its own.
        """
        inputs, first = self.batch.inputs, f"{layer.partition('.')[0]}."
        prefix = first if any(key.startswith(first) for key in inputs) else ""  # of several encoders
        decoder = ("decoder_input_ids", "decoder_inputs_embeds") if "decoder" in layer.split(".") else ()
        for key in (*decoder, TOKEN_MASK, "input_ids", "inputs_embeds"):
            value = inputs.get(prefix + key)
            place = 1 if self.each == 1 else 2  # behind the segments
            if value is not None and value.dim() > place:
                return value.shape[place]
        return None

    def windows_at(self, layer: str, x: Float[Tensor, "n *T k"]) -> int:
        """Return into how many windows each example is cut at ``layer``; its rows are [sample, example, window].

        Raises:
            DataError: the layer is in a block with windows and its rows are not those of the examples.
        """
        if layer not in self.windows:
            return 1
        if x.shape[0] % self.count:
            raise uneven_windows(layer, x.shape[0], self.count)
        return x.shape[0] // self.count

    def tokens_first(self, layer: str, x: Float[Tensor, "n *T k"]) -> bool:
        """Whether a layer's input has the shape (T, S·B, k), as in Longformer's attention and in XLNet.

        Raises:
            FoldError: T = S·B, so that the shape does not tell.
        """
        if not self.both_layouts or x.dim() != 3 or x.shape[1] != self.count:
            return False
        if x.shape[0] == self.count > 1:
            raise same_sides(layer, self.count)
        return x.shape[0] != self.count

    def are_examples(self, layer: str, x: Float[Tensor, "n *T k"]) -> bool:
        """Whether the rows are those of the examples, equally many for each and in their order."""
        rows, length = x.shape[0], self.length(layer)
        if layer in self.windows:
            return rows % self.count == 0
        if x.dim() > 2:
            return rows == self.count
        if _EXPERT.search(layer):
            return self.count == 1  # even S·B·T rows may be in another order
        # One vector per example is pooled, which happens once, after the blocks; in a block it may be some S·B tokens.
        if rows == self.count and (length in (None, 1) or not _NUMBERED.search(layer)):
            return True
        return length is not None and rows == self.count * length

    def require_examples(self, layer: str, x: Float[Tensor, "n *T k"], *, signs: bool) -> None:
        """Check that a layer with global parts runs on examples, where each has its own draw or its own signs.

        Args:
            layer: the layer's path.
            x: its input.
            signs: whether each example has its own signs (flipout).

        Raises:
            FoldError: it runs on something else, and several draws are folded into this pass.
            ConfigError: it runs on something else, and ``signs``.
        """
        if self.are_examples(layer, x):
            return
        if self.samples > 1 or signs:
            raise foreign_rows(layer, x.shape[0], self.count, routed=_is_routed(layer, x), folded=self.samples > 1)

    def by_example(self, layer: str, x: Float[Tensor, "n *T k"]) -> Float[Tensor, "m *U k"]:
        """Return ``x`` for a draw per token or example: rows [sample, example] or [sample, example, window].

        Raises:
            FoldError: the rows are not those of the examples.
            DataError: as :meth:`windows_at`.
        """
        self.windows_at(layer, x)
        routed = x.dim() == 2 and _EXPERT.search(layer) is not None  # of one example, too: which tokens is not known
        if routed or not self.are_examples(layer, x):
            raise unknown_rows(layer, x.shape[0], self.batch.size, self.samples, routed=_is_routed(layer, x))
        flat = x.dim() == 2 and x.shape[0] != self.count
        return x.unflatten(0, (self.count, -1)) if flat else x


def _is_routed(layer: str, x: Tensor) -> bool:
    return x.dim() == 2 and bool(_EXPERT.search(layer) or _NUMBERED.search(layer))
