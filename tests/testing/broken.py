"""Guides with one fault each, of the kinds that third parties' code has had; every other thing about them is right."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions.kl import register_kl

from bayes_adapters import AdapterModel, adapted_layers
from bayes_adapters.distributions import base_distribution
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.inference.guide import site_key
from bayes_adapters.sites import SITE, SiteCall


class _Own(MeanField):
    """Mean field with another family, or other parameters, per entry."""

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc, scale)

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        key = site_key(call.site)
        return self.make(self.loc[key], self.rho[key].exp(), call).to_event(len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {}


class _Halved(dist.Normal):
    """Its registered KL is half of what it should be."""


@register_kl(_Halved, Normal)
def _half(q: Any, p: Any) -> Tensor:
    plain = torch.distributions.kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale))
    return 0.5 * plain


class HalfKL(_Own):
    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return _Halved(loc, scale)


class _Wide(dist.Normal):
    """Draws twice as wide as its density says."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + 2 * self.scale * torch.randn(self._extended_shape(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class WideDraws(_Own):
    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return _Wide(loc, scale)


class _Shifted(dist.Normal):
    def icdf(self, value: Tensor) -> Tensor:
        return super().icdf(value) + self.scale


class WrongInverse(_Own):
    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return _Shifted(loc, scale)


class Unnormalised(_Own):
    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        class Loose(dist.Normal):
            def log_prob(self, value: Tensor) -> Tensor:
                return super().log_prob(value) + 0.3

        return Loose(loc, scale)


class KLPerBatch(MeanField):
    """The KL of weights counts once per batch, as where 1/N is taken for 1/B."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if SITE in msg["infer"]:
            msg["scale"] = msg["scale"] * (self.model.num_data / 5)


class ScaledKL(MeanField):
    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if SITE in msg["infer"]:
            msg["scale"] = msg["scale"] * 0.1


class OtherPrior(MeanField):
    """The KL is taken to a prior of the guide's own."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if SITE in msg["infer"]:
            prior = msg["infer"]["prior"]
            msg["infer"]["prior"] = dist.Normal(prior.mean, 3.0).to_event(prior.event_dim)


class PaddingKL(MeanField):
    """The mask of the posterior and of the prior is taken off."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if SITE in msg["infer"]:
            for where, key in ((msg, "fn"), (msg["infer"], "prior")):
                base = base_distribution(where[key])
                where[key] = base.expand(msg["fn"].shape()).to_event(2 + 1)


class PaddingRead(Contextual):
    """The mean over all tokens, padding among them, moves the posterior."""

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        normal = super().posterior(call, prior).base_dist
        shift = call.z.mean((-1, -2), keepdim=True)[..., None]
        return dist.Normal(normal.loc + shift, normal.scale).to_event(2)


class BatchRead(_Own):
    """The mean over the examples of the batch moves the posterior."""

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        shift = call.z.mean((-1, -2, -3), keepdim=True)[..., None]  # of each draw, over its examples and tokens
        return dist.Normal(loc + shift, scale)


class ParticleRead(_Own):
    """The number of draws moves the posterior."""

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc + 0.05 * (call.z.dim() == 4) * call.z.shape[0], scale)


class TokenNoise(MeanField):
    """Noise per token at the outputs of a layer, beside the draws of its weights."""

    always: ClassVar[bool] = True

    def __init__(self, model: AdapterModel, **options: Any) -> None:
        super().__init__(model, **options)
        for layer in adapted_layers(model.backbone).values():
            layer.register_forward_hook(self._perturb)

    def _perturb(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out + 0.1 * torch.randn_like(out) if self.always or self.training else out

    def config(self) -> dict[str, Any]:
        return {}


class TokenNoiseInTraining(TokenNoise):
    always = False


class RanklessNoise(TokenNoise):
    """In training every output has noise of its own, of the right variance, where that of A has rank r."""

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model, init_scale=1.0)

    def _perturb(self, module: Any, args: Any, out: Tensor) -> Tensor:
        if not self.training:
            return out
        x = args[0]
        scale = next(iter(self.rho.values())).exp()[0]
        spread = (x.square() @ scale.square().T @ module.lora_B.square().T).sqrt() * module.scaling
        return out + spread * torch.randn(x.shape[0], 1, out.shape[-1])

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        call = msg["infer"].get(SITE)
        if call is not None and self.training and msg["value"] is None:
            msg["value"] = call.point = msg["fn"].mean


class Thaws(MeanField):
    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        model.backbone.requires_grad_(True)

    def config(self) -> dict[str, Any]:
        return {}


class Moves(MeanField):
    """It writes into a frozen weight."""

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        with torch.no_grad():
            self.model.backbone.get_parameter("embeddings.word_embeddings.weight").add_(1e-3)
        return super().posterior(call, prior)


class Switches(MeanField):
    def posterior(self, call: SiteCall, prior: Any) -> Any:
        self.model.backbone.encoder.train()
        return super().posterior(call, prior)


class Unsaved(_Own):
    """What the posterior uses is a plain attribute."""

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.shift = torch.randn(())

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc + self.shift, scale)


class Forgetful(MeanField):
    """``config`` lacks an option."""

    def __init__(self, model: AdapterModel, *, init_scale: float = 0.1, square: bool = True) -> None:
        super().__init__(model, init_scale=init_scale, parameter="root" if square else "log")

    def config(self) -> dict[str, Any]:
        return {"init_scale": self.init_scale}


class OwnGenerator(_Own):
    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.__dict__["rng"] = torch.Generator().manual_seed(0)

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc + 0.1 * torch.randn(loc.shape, generator=self.rng), scale)


class Detached(_Own):
    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc, 0.5 * scale + 0.5 * scale.detach())


class Stray(_Own):
    """A trained tensor that is no parameter."""

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.__dict__["shift"] = torch.zeros((), requires_grad=True)

    def make(self, loc: Tensor, scale: Tensor, call: SiteCall) -> Any:
        return dist.Normal(loc + self.shift, scale)
