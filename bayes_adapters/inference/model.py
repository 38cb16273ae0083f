"""The Pyro model that every published structure is a case of: frozen backbone, adapters, head, prior, likelihood.

Density, for a batch of B examples of a data set of N: Pyro's usual estimate of the log-joint of all N::

    log p(τ)  +  log p(E_global | τ)  +  (N/B) Σ_b [ log p(y_b | x_b, E)  +  Σ_layers Σ_tokens log p(E_local | τ) ]

A weight-space core and a hyper-parameter τ of a prior have one prior factor per data set, a local core one per example;
padding has none. N is ``num_data``, or B where the data set's size is not known. MCMC, importance weights and Pyro's
guides and ELBOs see this density; :class:`bayes_adapters.ELBO` divides it by N: its unit is nats per datum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.adapters._checks import check_options
from bayes_adapters.adapters.forward_pass import ForwardPass, draw_weights, outer_shape, running
from bayes_adapters.adapters.installation import (
    adapted_layers,
    adapters_disabled,
    install,
    restored_on_error,
)
from bayes_adapters.adapters.linear import AdaptedLinear, kaiming
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.adapters.targets import Targets, linear_size, select
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.backbones.placement import place_beside
from bayes_adapters.backbones.traits import Traits
from bayes_adapters.data.batch import TOKEN_MASK, Batch
from bayes_adapters.data.rows import fold
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.heads import BackboneOutput, Head, LinearHead, Pooling
from bayes_adapters.heads._checks import require_head, require_size_known, require_tokens
from bayes_adapters.inference import _checks
from bayes_adapters.inference._pyro import register_if_captured
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.priors import Prior, PriorLike, zero_normal
from bayes_adapters.sites import Granularity, Part, Site, build_sites


class AdapterModel(nn.Module):
    """A frozen backbone with low-rank adapters, a head and a likelihood, as a Pyro model: ``model(batch)``.

    Sample sites: the random parts (:class:`bayes_adapters.sites.Site`) and ``obs`` (the targets). The backbone is a
    plain module; Pyro never sees its parameters. A structure is a subclass that says what is random, and its prior.

    Args:
        backbone: a Hugging Face model that returns ``last_hidden_state`` (rows, T, d) and whose config names its width.
            It is frozen and changed in place; ``remove(backbone)`` takes the adapters out and leaves it frozen.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        targets: the layers to adapt: suffixes, ``"all-linear"``, a regular expression or :class:`Targets`; None adapts
            none, for structures that do something else.
        rank: r.
        alpha: the scale is ``alpha / rank``.
        ranks: path of an adapted layer → ranks that pruning has left there, 0 … r; the scale stays ``alpha / rank``.
        dropout: dropout probability on the adapters' input while training.
        parts: which tensors of the adapters are random.
        granularity: for what one draw is shared; needed if anything is random.
        prior: prior of the random parts, see :mod:`bayes_adapters.priors`; None means N(0, 0.2²).
        pooling: of the default head, a :class:`~bayes_adapters.heads.LinearHead`: how hidden states become one vector
            per example; None is the mean, or none at all where the likelihood has one target per token.
        head: another head than the structure's own, see :mod:`bayes_adapters.heads`; its parameters are made here.
        num_data: N, the size of the data set; needed by global parts and by priors with hyper-parameters.
        grouped: one sample site for all layers where a global part has one shape, rather than one a layer.
        flipout: see :class:`~bayes_adapters.adapters.reparametrisation.Flipout`; for a random A.

    Raises:
        TargetError: the targets match nothing.
        ConfigError: an option is unknown or does not fit the others.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> class RandomCores(AdapterModel):
    ...     structure = "random_cores"
    ...     def __init__(self, backbone, likelihood, **options):
    ...         super().__init__(backbone, likelihood, parts=[Part.CORE], granularity="token", **options)
    >>> model = RandomCores(net, Bernoulli(), rank=2)
    >>> model(Batch({"input_ids": torch.randint(50, (3, 5))}, targets=torch.ones(3))).shape
    torch.Size([3, 1])
    """

    structure: ClassVar[str] = "adapter_model"
    layer: ClassVar[type[AdaptedLinear]] = AdaptedLinear
    """The class of the adapted layers: another formula is a subclass of it."""
    tags: ClassVar[bool] = True
    """Whether the structure serves likelihoods with one target per token."""

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        targets: Targets | str | Sequence[str] | None = ("query", "value"),
        rank: int = 8,
        alpha: float = 16.0,
        ranks: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        parts: Sequence[Part] = (),
        granularity: Granularity | str | None = None,
        prior: PriorLike | None = None,
        pooling: Pooling | str | None = None,
        head: Head | None = None,
        num_data: int | None = None,
        grouped: bool = True,
        flipout: bool = False,
    ) -> None:
        super().__init__()
        self.granularity = None if granularity is None else choice(Granularity, "granularity", granularity)
        self.rank, self.alpha, self.dropout, self.num_data = rank, alpha, dropout, num_data
        self.grouped, self.flipout = grouped, flipout
        check_options(rank, alpha, dropout)
        _checks.require_likelihood(likelihood)
        self.own_head = head is None
        head = self.default_head(pooling) if head is None else require_head(head, Head, pooling)
        self.require_fitting(head, likelihood)
        _checks.require_usable(backbone)
        width = self.feature_width(backbone)
        random_head = head.sites(width, likelihood)
        self.random_head = bool(random_head)
        options: dict[str, Any] = {"flipout": flipout, "num_data": num_data, "random_head": self.random_head}
        _checks.check_structure(type(self).__name__, parts, prior, granularity, **options)
        require_size_known(type(head).__name__, num_data, self.random_head)
        paths = [] if targets is None else select(backbone, targets)
        left = dict.fromkeys(paths, rank) | dict(_checks.checked_ranks(ranks or {}, paths, rank))
        self.sites: list[Site] = []
        if parts and self.granularity is not None:
            sizes = {path: (left[path], *linear_size(backbone.get_submodule(path))) for path in paths}
            self.sites = build_sites(sizes, tuple(parts), self.granularity, grouped=grouped)
        self.sites += random_head
        self.prior = Prior(zero_normal() if prior is None else prior, self.sites)
        _checks.require_num_data(num_data, self.sites, self.prior)
        self._traits = Traits.of(backbone, paths)
        own = {path: [site for site in self.sites if path in site.layers] for path in paths}
        with restored_on_error(backbone):
            options = {"rank": rank, "alpha": alpha, "dropout": dropout}
            installed = install(backbone, paths, ranks=left, sites=own, layer=self.layer, **options)
            self.layers, self._installed = list(installed), tuple(installed.values())
            self.backbone = backbone
            self.likelihood = likelihood
            head.prepare(width, likelihood)
            self.head = head
            place_beside(backbone, self.head, self.likelihood, self.prior)  # adapters are beside their base layers

    def default_head(self, pooling: Pooling | str | None) -> Head:
        """Return the head that the structure has where none is given."""
        return LinearHead(pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        """Raise :class:`ConfigError` unless ``head`` serves the likelihood and this structure."""
        head.suit(likelihood)
        require_tokens(type(self).__name__, head.per_token and not self.tags, likelihood)

    @property
    def pooling(self) -> Pooling:
        """How the head pools hidden states."""
        return self.head.pooling

    def feature_width(self, backbone: nn.Module) -> int:
        """Return d, the width of what :meth:`encode` returns."""
        return hidden_width(backbone)

    def outputs(self, features: Float[Tensor, "rows *T d"], batch: Batch) -> Float[Tensor, "rows *T K"]:
        """Map features to the likelihood's outputs; structures that fuse modalities late override this."""
        return self.head(features)

    def forward(self, batch: Batch) -> Float[Tensor, "*S K"]:
        """Run the generative process: draw cores, run the backbone once, score or draw ``obs``.

        Args:
            batch: targets may be None; ``obs`` is then drawn.

        Returns:
            The likelihood's parameters, shape (*S, B, K), or (*S, B, T, K) with one target per token, ``*S`` being the
            sizes of sample plates around the model.

        Raises:
            DataError: targets outside the likelihood's support; another number of tokens in them, or in the mask, than
                the backbone returns; token ids that it cannot embed; a part of the batch on another device.
            NonFiniteError: NaN or infinity in the inputs or the context, or, without gradients, in the outputs.
        """
        _checks.require_batch(batch)
        self.require_installed()
        require_head(self.head, Head, None)
        _checks.check_batch(batch, next(self.parameters()).device)
        self._traits.check(self.backbone, batch.inputs)
        if batch.targets is not None:
            self.likelihood.accept(batch.targets)
        register_if_captured("model", self)
        outer = outer_shape()
        rows = Rows(batch, outer, self._traits.windows, self._traits.both_layouts)
        # Signs per example are noise of training: a layer in eval mode sees one draw.
        flipped = {layer.path for layer in self._installed if self.flipout and layer.training}
        prior = self.prior.sampled(outer, next(self.parameters()).device)
        weights = draw_weights(self.sites, prior, rows, flipped)
        forward_pass = ForwardPass(rows, prior, weights, len(self.sites))
        local = [path for site in self.sites if site.granularity is not Granularity.GLOBAL for path in site.layers]
        with pyro.plate("data", batch.size, dim=-1), poutine.scale(scale=self.data_size(batch) / batch.size):
            with running(forward_pass), self._traits.around(self.backbone, local, forward_pass.tokens):
                outputs = self.outputs(self.encode(batch, math.prod(outer)), batch)
            if not torch.is_grad_enabled():  # in training the loss shows it, for which the host waits anyway
                _checks.require_finite(self, "The head's outputs are", outputs, batch.size)
            outputs = outputs.reshape(*outer, batch.size, *outputs.shape[1:])
            fn, targets = self._likelihood_of(outputs, batch), batch.targets
            pyro.sample("obs", fn, obs=None if targets is None else self.likelihood.observation(fn, targets))
        return outputs

    def _likelihood_of(self, outputs: Float[Tensor, "*S K"], batch: Batch) -> TorchDistributionMixin:
        if not self.likelihood.per_token:
            return self.likelihood.distribution(outputs)
        _checks.require_tokens_kept(batch, outputs.shape[-2])
        return self.likelihood.of_tokens(outputs, batch.token_mask)

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows *T d"]:
        """Run the adapted backbone on every example ``folds`` times, in the order [S, B]; return what the head sees."""
        inputs = {k: fold(v, folds) for k, v in batch.inputs.items() if k != TOKEN_MASK}
        mask = None if batch.token_mask is None else fold(batch.token_mask, folds)
        return self.head.read(BackboneOutput(self.backbone(**inputs), self.backbone, mask, inputs))

    def data_size(self, batch: Batch) -> int:
        """Return N, the examples that the density counts: ``num_data``, or those of the batch where it is not known."""
        return batch.size if self.num_data is None else self.num_data

    def require_installed(self) -> None:
        """Raise :class:`ConfigError` unless this model's own adapters are the ones in its backbone."""
        _checks.require_layers(self.backbone, dict(zip(self.layers, self._installed, strict=True)))

    def start(self, site: Site) -> Tensor:
        """Return where a guide's location for ``site`` starts, shape ``site.shape``, from torch's generator.

        A: Kaiming-uniform, as in plain LoRA. B: U(±0.001), for exact zeros would make every dropout rate infinite.
        Everything else: a draw from the prior; E = 0 together with B = 0 would give exactly zero gradients.
        """
        device = next(self.parameters()).device
        if site.part == Part.A:
            return torch.stack([kaiming(*site.event) for _ in site.layers]).reshape(site.shape).to(device)
        if site.part == Part.B:
            return torch.empty(site.shape, device=device).uniform_(-1e-3, 1e-3)
        return self.prior.of(site).sample().clone()

    def descriptor_width(self, site: Site) -> int:
        """Return the width of the descriptor that conditions the inter-modal core ``site``, if it is one."""
        raise ConfigError(f"The site {site.name!r} of this {type(self).__name__} is conditioned on no other modality.")

    @property
    def reads(self) -> frozenset[str]:
        """Keys of ``Batch.context`` that the model itself looks at."""
        return frozenset()

    @property
    def ranks(self) -> dict[str, int]:
        """Path → ranks of each adapted layer: r, or what pruning has left."""
        return {path: layer.rank for path, layer in adapted_layers(self.backbone).items()}

    def withholdable(self, batch: Batch) -> list[str]:
        """Name the modalities of ``batch`` that :meth:`withhold` can take away: those of its context.

        The backbone's own inputs are none of them: without its text there is nothing to run.
        """
        return list(batch.context)

    def withhold(self, batch: Batch, *modalities: str) -> Batch:
        """Return ``batch`` as it is for examples that lack ``modalities``: all of their frames are masked.

        They are masked, not left out: a name that is not there is taken for misspelled.

        Raises:
            ConfigError: a name is none of :meth:`withholdable`.
        """
        _checks.require_withholdable(modalities, self.withholdable(batch))
        return batch.masked(*modalities)

    def adapters_disabled(self) -> AbstractContextManager[nn.Module]:
        """A context in which the backbone is the frozen one."""
        return adapters_disabled(self.backbone)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter for everything that training changes: adapters, head, likelihood."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON, targets resolved to module paths; some are left out where they are usual."""
        options = {"targets": list(self.layers), "rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        options |= {"pooling": self.pooling.value} if self.own_head else {}
        options |= {"num_data": self.num_data} if self.random_head else {}  # other random parts say it themselves
        pruned = {path: rank for path, rank in self.ranks.items() if rank != self.rank}
        unusual = {"ranks": pruned, "grouped": self.grouped, "flipout": self.flipout}
        usual = {"ranks": {}, "grouped": True, "flipout": False}
        return options | {name: value for name, value in unusual.items() if value != usual[name]}
