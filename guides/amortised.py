"""``Amortised``: the core's posterior is a network's answer to the text feature and a context (CoCo-LoRA, CALIBER)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.data.contexts import as_given, context_gates, context_widths, gate_option, module_key
from bayes_adapters.devices import fp32
from bayes_adapters.errors import choice
from bayes_adapters.guides._checks import check_context, check_heads, require_float32, require_spread
from bayes_adapters.guides._context import as_reliabilities, frames_of
from bayes_adapters.guides._head import PosteriorHead, ScaleTransform
from bayes_adapters.guides._readers import AttentionReader, PooledReader, ProjectedReader
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import Granularity, SiteCall


class Context(StrEnum):
    """What the posterior is conditioned on besides the layer's own feature."""

    NONE = "none"
    """Nothing: C-LoRA."""
    GLOBAL_SHARED_HEADS = "global_shared_heads"
    """The pooled context, projected once for the network and adapted by a linear map per layer: CoCo-LoRA."""
    GLOBAL = "global"
    """The pooled context, projected in each layer: CALIBER-G."""
    CROSS_ATTENTION = "cross_attention"
    """Frames that each token attends over: CALIBER-X."""


class KVSharing(StrEnum):
    """Whether layers share the projections of the context."""

    PER_MODULE = "per_module"
    """Each layer has its own."""
    SHARED = "shared"
    """One for the whole network: CALIBER's shared-KV branch."""


class Amortised(AdapterGuide):
    """``q(E_t | z_t, a) = N(E_p[E] + μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; c_t]``, one network (μ, g) per layer.

    c_t is what ``context`` says (see :class:`Context`). :class:`bayes_adapters.guides.Contextual`,
    :class:`bayes_adapters.guides.PooledContext` and :class:`bayes_adapters.guides.CrossAttention` are this guide with
    the context fixed. Without f (``scale=None``) q is the point at that mean, and "KL" is −log p of it: trained with
    ``kl_weight=0``, as the systems' recipes are, it is the deterministic network, with r² · (``width`` + 1) numbers
    fewer per layer.

    Several contexts, ``context_dim={"audio": 384, "image": 768}``, have a reader, a null and, if asked for, a density
    each: ``u_t = [z_t ; c_t^audio ; c_t^image]``, in the order of their names. One that is missing, for an example or
    for the batch, is its own null. The trusts of several densities multiply where they fall back to one scale.

    ``gate=g`` lets a context count less than training made of it: ``c_t ← c_t^∅ + g (c_t − c_t^∅)``, c_t^∅ being what a
    missing context gives. At 1 nothing changes; at 0 the posterior is that of missing context, the context is not read,
    nor trusted or distrusted. g is no parameter: :func:`bayes_adapters.reliability.choose_gate` finds it, and says why
    training cannot.

    Source: C-LoRA, arXiv 2505.17773 (network, f); CoCo-LoRA, arXiv 2604.16615, and CALIBER, arXiv 2604.16657, whose
    equations are not public: their forms are reconstructions on C-LoRA.

    Args:
        model: a model with token or sequence cores.
        context: see :class:`Context`.
        context_dim: d_a, width of the context's frames, or modality → width of several contexts; none with
            ``context="none"``.
        dim: d_c, width of what is read from the context.
        heads: H of the attention; must divide ``dim``.
        kv_sharing: see :class:`KVSharing`; for ``global`` and ``cross_attention``.
        modality: the key of the frames in ``Batch.context``, where ``context_dim`` does not name them.
        width: hidden units of the posterior network.
        scale: f, ``"sigmoid_squared"`` or ``"softplus"``; None for a point.
        null_context: learn what stands in for missing context; without it that is an error.
        reliability: makes the posterior less sure where a context is far from those of training (see
            :class:`bayes_adapters.reliability.Reliability`), or modality → that of several contexts. None trusts every
            context.
        gate: g, from 0 to 1, or modality → g of several contexts.

    Raises:
        ConfigError: a size below 1, heads that do not divide ``dim``, an option without effect, or a site that cannot
            be served.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, Frames, predict
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2)
    >>> guide = Amortised(model, context="global_shared_heads", context_dim=6, dim=8)
    >>> audio = Frames(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, context={"audio": audio})
    >>> sorted(guide.reads), predict(model, guide, batch, num_samples=4).mean.shape
    (['audio'], torch.Size([2]))
    """

    name: ClassVar[str] = "amortised"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.TOKEN, Granularity.SEQUENCE})
    serves_hyper: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        model: AdapterModel,
        *,
        context: Context | str = Context.CROSS_ATTENTION,
        context_dim: int | Mapping[str, int] | None = None,
        dim: int = 64,
        heads: int = 1,
        kv_sharing: KVSharing | str = KVSharing.PER_MODULE,
        modality: str = "audio",
        width: int = 64,
        scale: ScaleTransform | str | None = ScaleTransform.SIGMOID_SQUARED,
        null_context: bool = True,
        reliability: Reliability | Mapping[str, Any] | None = None,
        gate: float | Mapping[str, float] = 1.0,
    ) -> None:
        super().__init__(model)
        self.context, self.kv_sharing = choice(Context, "context", context), choice(KVSharing, "kv_sharing", kv_sharing)
        self.widths = {} if context_dim is None else context_widths(context_dim, modality)
        """Modality → d_a of the contexts that are read, in the order of their names."""
        self.modality = next(iter(self.widths)) if len(self.widths) == 1 else modality
        self.dim, self.num_heads = dim, heads
        self.scale = None if scale is None else choice(ScaleTransform, "scale", scale)
        self.width, self.null_context = width, null_context
        self._check(reliability is not None, gate != 1.0)
        self.gate = context_gates(gate, self.widths, null_context) if self.widths else {}
        """Modality → g."""
        self.reliability = as_reliabilities(reliability, self.widths, model)
        ranks = {site_key(site): site.rank for site in model.sites}
        readers = {module_key(name): self._reader(ranks, name) for name in self.widths}
        self.reader = nn.ModuleDict(readers) if len(readers) > 1 else next(iter(readers.values()), None)
        extra = len(readers) * dim
        self.heads = nn.ModuleDict({k: PosteriorHead(r + extra, r, width, self.scale) for k, r in ranks.items()})
        self.to(next(model.parameters()).device).float()  # whatever torch's default dtype is

    def _check(self, reliable: bool, gated: bool) -> None:
        check_heads(self.dim, self.num_heads)
        require_spread(self.scale is not None, reliable)
        unread = {"heads": self.num_heads != 1} if self.context is not Context.CROSS_ATTENTION else {}
        if self.context is Context.NONE:
            own = {"dim": self.dim != 64, "modality": self.modality != "audio", "null_context": not self.null_context}
            unread |= own | {"reliability": reliable, "gate": gated}
        check_context(self.context.value, self.context_dim, self.kv_sharing is KVSharing.SHARED, unread)

    def _reader(self, ranks: dict[str, int], name: str) -> nn.Module:
        shared, null, width = self.kv_sharing is KVSharing.SHARED, self.null_context, self.widths[name]
        if self.context is Context.CROSS_ATTENTION:
            named = name if len(self.widths) > 1 else ""
            return AttentionReader(ranks, width, self.dim, self.num_heads, shared, null, named)
        if self.context is Context.GLOBAL:
            return PooledReader(list(ranks), width, self.dim, shared, null)
        return ProjectedReader(list(ranks), width, self.dim, null)

    @property
    def context_dim(self) -> int | dict[str, int] | None:
        """d_a of the one context, or modality → d_a."""
        return as_given(self.widths) if self.widths else None

    @property
    def deterministic(self) -> bool:
        return self.scale is None and self.hyper is None  # the prior's mean may depend on its hyper-parameters

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.widths)

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        key = site_key(call.site)
        require_float32(self)
        with fp32(call.z.device):
            found = {m: frames_of(call, m, d, self.null_context, self.widths) for m, d in self.widths.items()}
            seen = [call.z, *(self._read(name, key, frames, call) for name, frames in found.items())]
            posterior = self.heads[key](seen[0] if len(seen) == 1 else torch.cat(seen, -1), prior)
            for name, frames in found.items():
                reliability = _of(self.reliability, name)
                if reliability is not None and self.gate[name] > 0.0:
                    posterior = reliability(posterior, prior, frames, call.memo)
            return posterior

    def _read(self, name: str, key: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "*S B T c"]:
        """Return what the layer ``key`` reads of the context ``name``, as far as its gate is open."""
        reader, gate = _of(self.reader, name), self.gate[name]
        if gate == 0.0:
            return reader.absent(key).expand(*call.z.shape[:-1], self.dim)
        context: Tensor = reader(key, frames, call)
        return context if gate == 1.0 else torch.lerp(reader.absent(key).expand_as(context), context, gate)

    def config(self) -> dict[str, Any]:
        return {
            "context": self.context.value,
            "context_dim": self.context_dim,
            "dim": self.dim,
            "heads": self.num_heads,
            "kv_sharing": self.kv_sharing.value,
            "modality": self.modality,
            "width": self.width,
            "scale": None if self.scale is None else self.scale.value,
            "null_context": self.null_context,
            "reliability": self._reliabilities(),
        } | gate_option(self.gate, self.widths, self.null_context)

    def _reliabilities(self) -> dict[str, Any] | None:
        found = {name: _of(self.reliability, name) for name in self.widths}
        known = {name: one.config() for name, one in found.items() if one is not None}
        return known if len(self.widths) > 1 and known else known.get(self.modality)


def _of(parts: Any, name: str) -> Any:
    """Return the part of the context ``name``: ``parts`` itself where there is one context, or None."""
    return dict(parts.items()).get(module_key(name)) if isinstance(parts, nn.ModuleDict) else parts


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return ``config`` without what a subclass has fixed."""
    return {key: value for key, value in config.items() if key not in names}
