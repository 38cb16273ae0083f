"""The width of a backbone, and the last hidden states of what it returned."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones._checks import (
    no_width,
    require_hidden,
    require_hidden_width,
    require_no_task_head,
    require_pooled,
)

_WIDTHS = ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd")
"""Where configs have their width; OPT-350m projects its hidden states."""


def hidden_width(backbone: nn.Module) -> int:
    """Return the width of a Hugging Face model's hidden states, from its config or, of several, from that of its text.

    Raises:
        ConfigError: there is none, or the model has a task head and returns no hidden states.
    """
    require_no_task_head(backbone)
    return config_width(backbone)


def config_width(backbone: nn.Module) -> int:
    """Return the width that a config names, of a model with a task head too; raise :class:`ConfigError` if none."""
    config: Any = getattr(backbone, "config", None)
    width = _width(config)
    if width is None and hasattr(config, "get_text_config"):  # Gemma 3 and LLaVA
        width = _width(config.get_text_config(decoder=True))
    if width is not None:
        return width
    raise no_width(backbone)


def _width(config: Any) -> int | None:
    found = (getattr(config, name, None) for name in _WIDTHS)
    return next((width for width in found if isinstance(width, int)), None)


@contextmanager
def heard(backbone: nn.Module, paths: Collection[str]) -> Iterator[dict[str, Any]]:
    """Within the context note what the modules at ``paths`` return: path → the last return value."""
    said: dict[str, Any] = {}

    def hook(path: str) -> Any:
        return lambda *call: said.__setitem__(path, call[-1])

    with ExitStack() as stack:
        for path in paths:
            stack.callback(backbone.get_submodule(path).register_forward_hook(hook(path)).remove)
        yield said


def last_hidden_state(output: Any, backbone: nn.Module) -> Float[Tensor, "rows T d"]:
    """Return the last hidden states of what ``backbone`` returned, of the width that its config names.

    Raises:
        ConfigError: there are none, or they have another shape or width.
    """
    hidden: Any = getattr(output, "last_hidden_state", None)
    require_hidden(output, hidden, backbone)
    require_hidden_width(hidden, backbone, hidden_width(backbone))
    return hidden


def pooler_output(output: Any, backbone: nn.Module) -> Float[Tensor, "rows d"]:
    """Return the ``pooler_output`` of what ``backbone`` returned, as wide as its config says.

    Raises:
        ConfigError: there is none, or it has another shape or width.
    """
    pooled: Any = getattr(output, "pooler_output", None)
    require_pooled(pooled, backbone, hidden_width(backbone))
    return pooled
