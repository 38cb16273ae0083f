"""What a model is made of: a frozen backbone with adapters, their random parts and prior, a head and a likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayes_adapters._options import require_known
from bayes_adapters.adapters._checks import check_options
from bayes_adapters.adapters.installation import (
    adapted_layers,
    adapters_disabled,
    install,
    restored_on_error,
)
from bayes_adapters.adapters.linear import AdaptedLinear, kaiming
from bayes_adapters.adapters.recomputation import checkpointing, require_nonreentrant
from bayes_adapters.adapters.targets import Targets, linear_size, select
from bayes_adapters.backbones.hidden_states import config_width
from bayes_adapters.backbones.placement import place_beside
from bayes_adapters.backbones.quantised import keep_gradients
from bayes_adapters.backbones.traits import Traits
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.heads import Head, LinearHead, Pooling
from bayes_adapters.heads._checks import require_head, require_tokens
from bayes_adapters.heads._prior import HeadPrior
from bayes_adapters.inference import _checks
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.priors import Prior, PriorLike, zero_normal
from bayes_adapters.sites import Granularity, Part, Site, build_sites


class AdaptedBackbone(nn.Module):
    """The parts of a model, put together and checked; :class:`bayes_adapters.AdapterModel` lets them generate data.

    The arguments are those of :class:`bayes_adapters.AdapterModel`, which explains them.
    """

    layer: ClassVar[type[AdaptedLinear]] = AdaptedLinear
    """The class of the adapted layers: another formula is a subclass of it."""
    two_sided: ClassVar[bool] = False
    """Whether the head gets the outputs of several encoders side by side, each a function of its own inputs only."""

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
        **unknown: Any,
    ) -> None:
        require_known(type(self), unknown)
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
        head.suit_backbone(backbone, width)
        random_head = head.sites(width, likelihood)
        self.random_head = bool(random_head)
        of_head = {site: own for site in random_head if (own := head.prior(site)) is not None}
        served = [site for site in random_head if site not in of_head]
        options: dict[str, Any] = {"flipout": flipout, "num_data": num_data, "random_head": bool(served)}
        _checks.check_structure(type(self).__name__, parts, prior, granularity, **options)
        paths = [] if targets is None else select(backbone, targets)
        left = dict.fromkeys(paths, rank) | dict(_checks.checked_ranks(ranks or {}, paths, rank))
        self.sites: list[Site] = []
        if parts and self.granularity is not None:
            sizes = {path: (left[path], *linear_size(backbone.get_submodule(path))) for path in paths}
            self.sites = build_sites(sizes, tuple(parts), self.granularity, grouped=grouped)
        self.sites += served
        self.prior = Prior(zero_normal() if prior is None else prior, self.sites)
        self.head_sites = list(of_head)
        own_priors = {site.name: own for site, own in of_head.items()}
        self.head_prior = HeadPrior(own_priors or zero_normal(), self.head_sites)
        _checks.require_num_data(num_data, self.latent_sites, self.prior)
        self._traits = Traits.of(backbone, paths)
        own = {path: [site for site in self.sites if path in site.layers] for path in paths}
        with restored_on_error(backbone):
            options = {"rank": rank, "alpha": alpha, "dropout": dropout}
            installed = install(backbone, paths, ranks=left, sites=own, layer=self.layer, **options)
            self.layers, self._installed = list(installed), tuple(installed.values())
            self.backbone = backbone
            keep_gradients(backbone)
            self._checkpointing = checkpointing(backbone)
            require_nonreentrant(self._checkpointing, self._installed)
            self.likelihood = likelihood
            head.prepare(width, likelihood)
            self.head = head
            parts_beside = (self.head, self.likelihood, self.prior, self.head_prior)  # adapters are so already
            place_beside(backbone, *parts_beside)

    @property
    def latent_sites(self) -> list[Site]:
        """Every sample site but the targets': those that a guide infers, and those whose posterior the head brings."""
        return [*self.sites, *self.head_sites]

    def default_head(self, pooling: Pooling | str | None) -> Head:
        """Return the head that the structure has where none is given."""
        return LinearHead(pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        """Raise :class:`ConfigError` unless ``head`` serves the likelihood and this structure."""
        head.suit(likelihood)
        require_tokens(type(self).__name__, head.per_token and not self.tags, likelihood)
        _checks.require_apart(type(self).__name__, self.two_sided, likelihood)
        _checks.require_one_function(f"{type(self).__name__}(flipout=True)", self.flipout, likelihood)

    @property
    def tags(self) -> bool:
        """Whether the model serves likelihoods with one target per token."""
        return True

    @property
    def pooling(self) -> Pooling:
        """How the head pools hidden states."""
        return self.head.pooling

    def feature_width(self, backbone: nn.Module) -> int:
        """Return d, the width of what :meth:`encode` returns."""
        return config_width(backbone)

    @property
    def installed(self) -> dict[str, AdaptedLinear]:
        """Path → adapted layer of this model, whether it is in the backbone or taken out."""
        return dict(zip(self.layers, self._installed, strict=True))

    def require_installed(self) -> None:
        """Raise :class:`ConfigError` unless this model's own adapters are the ones in its backbone."""
        _checks.require_layers(self.backbone, self.installed)

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
    def ranks(self) -> dict[str, int]:
        """Path → ranks of each adapted layer: r, or what pruning has left."""
        return {path: layer.rank for path, layer in adapted_layers(self.backbone).items()}

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
