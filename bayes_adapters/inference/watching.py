"""What the weights of a pass are multiplied with, seen from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayes_adapters.adapters.forward_pass import current_pass
from bayes_adapters.errors import FoldError
from bayes_adapters.sites import SITE, SiteCall


class Product(NamedTuple):
    """One time that a layer multiplied by its weight.

    Args:
        x: what by, shape (n, *T, k).
        y: the product, shape (n, *T, m), which may have a graph.
        arrange: a tensor with the rows of x or y → the same with the shape (B, tokens, k); None where the rows are not
            those of the examples.
    """

    x: Tensor
    y: Tensor
    arrange: Callable[[Tensor], Float[Tensor, "B t k"]] | None


class Watching(Messenger):
    """A context that gathers ``products``: (site, number of the layer) → every :class:`Product` of its weight.

    A weight whose value a layer or a head reads by itself, rather than by ``times``, has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[tuple[str, int], list[Product]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is None or msg["is_observed"]:
            return
        site = call.site

        def watch(layer: int, x: Tensor, y: Tensor) -> None:
            product = Product(x, y, _arrangement(site.layers[layer], x))
            self.products.setdefault((site.name, layer), []).append(product)

        call.watch = watch


def _arrangement(path: str, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    found = current_pass()
    if found is None:
        return None
    rows, count = found.rows, found.rows.count
    try:
        if rows.tokens_first(path, x):
            return lambda value: value.transpose(0, 1)
    except FoldError:  # as many tokens as examples: which is which does not show
        return None
    if not rows.are_examples(path, x):
        return None
    return lambda value: value.reshape(count, -1, value.shape[-1])
