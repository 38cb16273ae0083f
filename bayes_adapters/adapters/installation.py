"""How adapted layers get into a backbone and out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from bayes_adapters.adapters._checks import check_options, require_unmerged
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError
from bayes_adapters.sites import Site


def install(
    backbone: nn.Module,
    paths: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    ranks: Mapping[str, int] | None = None,
    sites: Mapping[str, Sequence[Site]] | None = None,
    layer: type[AdaptedLinear] = AdaptedLinear,
) -> dict[str, AdaptedLinear]:
    """Freeze ``backbone`` and put an :class:`AdaptedLinear` in the place of each layer in ``paths``.

    Args:
        backbone: changed in place; :func:`remove` restores it bit for bit.
        paths: module paths, as :func:`bayes_adapters.adapters.targets.select` lists them.
        rank: r of every adapter.
        alpha: the scale's numerator; ``h = base(x) + alpha / rank · B E A x``.
        dropout: dropout probability on the adapters' input.
        ranks: path → ranks that pruning has left; a path without an entry has all.
        sites: the sample sites of each path's random parts; a path without any is plain LoRA.
        layer: the class of the adapted layers, :class:`AdaptedLinear` or a subclass with another formula.

    Returns:
        Path → adapted layer, in the order of ``paths``.

    Raises:
        ConfigError: the backbone already holds adapters, or an option is out of range; nothing was changed.
    """
    require_unadapted(backbone)
    check_options(rank, alpha, dropout)
    backbone.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    places = _places(backbone)
    for path in paths:
        own = () if sites is None else sites.get(path, ())
        base = backbone.get_submodule(path)
        kept = None if ranks is None else ranks.get(path)
        layers[path] = layer(base, rank, alpha, kept=kept, path=path, dropout=dropout, sites=own)
        _put(backbone, places[base], layers[path])
        layers[path].train(base.training)
    return layers


def remove(backbone: nn.Module) -> nn.Module:
    """Put every base layer back and return the backbone: bit-identical to before :func:`install`, but still frozen.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import LoRA
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> list(adapted_layers(model.backbone))
    ['encoder.layer.0.attention.self.query', 'encoder.layer.0.attention.self.value']
    >>> list(adapted_layers(remove(model.backbone)))
    []
    """
    swap(backbone, [(layer, layer.base_layer) for layer in adapted_layers(backbone).values()])
    return backbone


def swap(backbone: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put the second module of each pair in the first one's place, at every path where that is."""
    places = _places(backbone)
    for old, new in pairs:
        _put(backbone, places[old], new)


def _places(backbone: nn.Module) -> dict[nn.Module, list[str]]:
    """Module → all its paths: a module may be held twice, and both holders call what was put at their own path."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in backbone.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(path)
    return found


def _put(backbone: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    for path in paths:
        backbone.set_submodule(path, module)


def require_unadapted(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` if ``backbone`` holds adapters."""
    if adapted_layers(backbone):
        raise ConfigError(
            f"This {type(backbone).__name__} already has adapters. Remove them first with "
            "bayes_adapters.remove(backbone), or load a second backbone."
        )


@contextmanager
def restored_on_error(backbone: nn.Module) -> Iterator[None]:
    """If the context ends with an error, take out the adapters it installed and undo the freezing.

    Raises:
        ConfigError: ``backbone`` is no module.
    """
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"The backbone must be a torch module; got a {type(backbone).__name__}.")
    before = set(adapted_layers(backbone))
    flags = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    try:
        yield
    except BaseException:
        new = [layer for path, layer in adapted_layers(backbone).items() if path not in before]
        swap(backbone, [(layer, layer.base_layer) for layer in new])
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def adapted_layers(backbone: nn.Module) -> dict[str, AdaptedLinear]:
    """Return path → adapted layer for every adapter in ``backbone``.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import LoRA
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2, targets=["query"])
    >>> {path: layer.rank for path, layer in adapted_layers(model.backbone).items()}
    {'encoder.layer.0.attention.self.query': 2}
    """
    return {path: module for path, module in backbone.named_modules() if isinstance(module, AdaptedLinear)}


@contextmanager
def adapters_disabled(backbone: nn.Module) -> Iterator[nn.Module]:
    """Within the context the backbone computes what it computed before adapters were installed.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import LoRA
    >>> import torch
    >>> model, ids = LoRA(BertModel(tiny).eval(), Bernoulli(), rank=2), torch.tensor([[3, 4, 5]])
    >>> for layer in adapted_layers(model.backbone).values():
    ...     _ = torch.nn.init.ones_(layer.lora_B)
    >>> with adapters_disabled(model.backbone) as frozen:
    ...     plain = frozen(ids).last_hidden_state
    >>> torch.equal(plain, model.backbone(ids).last_hidden_state)
    False
    >>> torch.equal(plain, remove(model.backbone)(ids).last_hidden_state)
    True

    Raises:
        ConfigError: the adapters are merged into the weights.
    """
    require_unmerged(adapted_layers(backbone), "disabled")
    before = {layer: layer.enabled for layer in adapted_layers(backbone).values()}
    for layer in before:
        layer.enabled = False
    try:
        yield backbone
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled
