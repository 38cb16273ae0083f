"""What adapted layers refuse, and in which words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bayes_adapters.errors import ConfigError, DataError, FoldError, whole_number


def check_options(rank: int, alpha: float, dropout: float) -> None:
    """Raise :class:`ConfigError` if an adapter cannot have these options."""
    whole_number("rank", rank)
    if not isinstance(alpha, int | float) or not 0.0 < alpha < math.inf:
        raise ConfigError(f"alpha must be positive and finite, for example 2 * rank; got {alpha!r}.")
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must lie in [0, 1); got {dropout!r}.")


def outside_model(layer: str, parts: Iterable[str]) -> ConfigError:
    """A layer with random parts was called with no pass running."""
    return ConfigError(
        f"The adapted layer {layer!r} has a random {'/'.join(parts)}, which only exists inside a model. Call the "
        "model, the guide or predict(); for the frozen backbone alone use `with model.adapters_disabled():`. During "
        "loss.backward() the cause is gradient checkpointing by hand, which runs layers again on their own: pass "
        "torch.utils.checkpoint.checkpoint(..., use_reentrant=False, context_fn=bayes_adapters.adapters.same_pass)."
    )


def merged_meanwhile(layer: str, what: str) -> ConfigError:
    """A layer whose update is in its base weight for the time being, and which is to be ``what`` meanwhile."""
    return ConfigError(
        f"The update of the adapted layer {layer!r} is merged into its base weight, so it cannot be {what}: leave "
        "`with merged(model)` first. Inside it predict, or call the model under torch.no_grad() in eval mode."
    )


def require_unmerged(layers: Mapping[str, Any], what: str) -> None:
    """Raise :class:`ConfigError` if one of ``layers`` (path → adapted layer), which are to be ``what``, is merged."""
    for path, layer in layers.items():
        if layer.merged:
            raise merged_meanwhile(path, what)


def returns_several(layer: str, kind: str, found: str) -> ConfigError:
    """A linear layer by its class that returns a ``found`` in the place of one tensor."""
    return ConfigError(
        f"The adapted layer {layer!r} is a {kind}, which returns a {found}: it is no linear layer (the router of a "
        f"mixture of experts?). Leave it out: Targets(..., exclude=[{layer.rpartition('.')[2]!r}])."
    )


def ends_gradients(layer: str, kind: str) -> ConfigError:
    """A linear layer of class ``kind`` whose output needs no gradient though its input does."""
    return ConfigError(
        f"No gradient passes the backbone's layer {layer!r}, a {kind}: its output does not depend on its input as "
        "autograd sees it, so adapters before it would never move. Layers that quantise their activations are so "
        "(torchao's Int8DynamicActivation…): load the backbone with quantised weights only, or in bfloat16."
    )


def applied_twice(layer: str) -> ConfigError:
    """A layer with a local part ran twice in a pass."""
    return ConfigError(
        f"The backbone applies the adapted layer {layer!r} more than once in a pass (as ALBERT shares its layers), so "
        "its core is no single sample site. Use granularity='global', or adapt other layers."
    )


def uneven_windows(layer: str, found: int, rows: int) -> DataError:
    """A layer within windows received ``found`` rows, no multiple of the ``rows`` examples × samples."""
    name = ".".join(layer.split(".")[-2:])
    return DataError(
        f"The adapted layer {layer!r} received {found} rows where there are {rows} examples × samples: it does not run "
        "on the examples (a table of relative positions, as in Swin V2's attention?), so no draw can belong to one. "
        f"Leave it out: Targets(..., exclude=[{name!r}])."
    )


def padded_windows(layer: str, seen: int, tokens: int) -> DataError:
    """A layer within windows saw ``seen`` tokens of an example whose block's input has ``tokens``."""
    return DataError(
        f"The adapted layer {layer!r} sees {seen} tokens of an example where its block's input has {tokens}: the "
        "backbone pads images up to whole windows, and padding has no draw of its own. Resize the images so that at "
        "every stage the windows divide the grid of patches, or use granularity='global'."
    )


def same_sides(layer: str, rows: int) -> FoldError:
    """A layer received as many tokens as examples × samples, and either may come first."""
    return FoldError(
        f"The adapted layer {layer!r} received {rows} × {rows} vectors, and this backbone has layers that see (tokens, "
        "examples) and layers that see (examples, tokens): which is which does not show where examples × samples are "
        "as many as tokens. Take another chunk_size, batch size or padding."
    )


def foreign_rows(layer: str, found: int, rows: int, *, routed: bool, folded: bool) -> ConfigError | FoldError:
    """A layer with global parts received ``found`` rows that are not those of the ``rows`` examples × samples."""
    cause = "a routed expert, which sees some of the tokens?" if routed else "one table of positions, as in DeBERTa?"
    what = (
        f"The adapted layer {layer!r} received {found} rows where there are {rows} examples × samples: it does not run "
        f"on the examples ({cause})"
    )
    if folded:
        return FoldError(
            f"{what}, so several draws of it cannot share a pass. Take one draw per pass: chunk_size=1 in predict, "
            "num_particles=1 in the ELBO."
        )
    return ConfigError(
        f"{what}, so flipout has no example whose signs it could take. Build the model with flipout=False."
    )


def unknown_rows(layer: str, found: int, examples: int, samples: int, *, routed: bool) -> FoldError:
    """A layer with a draw per token or example received ``found`` rows that are not those of the examples."""
    cause = (
        "Is it a routed expert, which sees some of the tokens? Use granularity='global', or leave it out."
        if routed
        else "Does the backbone merge or split examples before this layer?"
    )
    return FoldError(
        f"The adapted layer {layer!r} received {found} rows where the batch has {examples} examples and {samples} "
        f"samples. {cause}"
    )
