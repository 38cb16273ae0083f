"""LoRA whose A carries multiplicative noise, anew for every example: the model of BaLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import ForwardPass
from bayes_adapters.adapters.linear import AdaptedLinear, Times
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models._checks import check_drop
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part, Site


class NoisyDownLinear(AdaptedLinear):
    """``h = W₀ x + (α/r) B (A ⊙ η) x``: A and B are parameters, η is drawn from its site.

    It is computed as ``A x + (A ⊙ (η − 1)) x``, so that η = 1 is plain LoRA to the last bit.
    """

    def update(self, x: Float[Tensor, "rows *T d_in"], times: Times) -> Float[Tensor, "rows *T d_out"]:
        return times(Part.B, times(Part.A, x) + times(Part.NOISE, x))

    def as_lora(self, values: Mapping[Part, Tensor]) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        return self.get_parameter("lora_A") * values[Part.NOISE], self.get_parameter("lora_B")

    def _times(self, forward_pass: ForwardPass | None, part: Part, x: Tensor) -> Tensor:
        if part != Part.NOISE or forward_pass is None:
            return super()._times(forward_pass, part, x)
        down = self.get_parameter("lora_A")
        noise = forward_pass.draw(self.sites[part], x)[:, 0]  # one per sample and example, for all of its tokens
        rows = x.reshape(noise.shape[0], -1, x.shape[-1]).to(down.dtype)
        return torch.matmul(rows, (down * (noise - 1.0)).to(down.dtype).mT).reshape(*x.shape[:-1], down.shape[0])


class BaLoRA(AdapterModel):
    """``h_i = W₀ x_i + (α/r) B (A ⊙ η_i) x_i``, ``η_i ~ N(0, p/(1−p))`` per entry of A, per layer and per example i.

    In terms of weights ``ω = A ⊙ η`` that is the prior ``N(0, p/(1−p) A²)`` of the paper; a posterior
    ``q(η) = N(1, a)`` is ``q(ω) = N(A, a A²)``, the form of variational dropout. The KL does not depend on A::

        KL = ½ Σ [ (a + 1)(1−p)/p − 1 + log(p/(1−p)) − log a ]        over the r · d_in entries, once per example

    It is least at ``a = p/(1−p)``, where it is not 0 but ``½ (1−p)/p`` per entry: the mean 1 is the price of having an
    adapter at all. The entries of a layer share a, so that the KL holds it r · d_in times as tightly as the likelihood
    of one example speaks: at KL weight 1 a stays near ``p/(1−p)`` whatever the input. An a that listens needs a weight
    of about 1/(r · d_in), which the published abstract does not tell.

    The noise is one per example, shared by its tokens, so that a draw is one function of a text. Given x it is Gaussian
    in the rank space, ``Cov[(A ⊙ η) x_t, (A ⊙ η) x_t'] = a · diag(A² (x_t ⊙ x_t'))``, squares elementwise. It is a
    local latent: what it adds to the answer does not shrink with N.

    The guide is :class:`bayes_adapters.guides.InputNoise`, a = a(x). Any guide of real-valued local parts serves too;
    :class:`bayes_adapters.guides.Delta` starts as plain LoRA.

    Source: BaLoRA, arXiv 2605.08110, from its abstract and second-hand notes. One noise for all tokens of an example is
    a reconstruction; so are p = 0.1 and the start of a, for the published values are not known.

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        drop: p in (0, 1), which sets the prior variance p / (1 − p), as a dropout rate does.
        prior: another prior of η; None is that of ``drop``.
        **options: further options of :class:`AdapterModel`.

    Raises:
        ConfigError: ``drop`` out of range.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = BaLoRA(BertModel(tiny), Bernoulli(), drop=0.2, rank=2, targets=["query"])
    >>> [(site.name, site.shape) for site in model.sites], model.prior.of(model.sites[0]).variance[0, :2]
    ([('noise.encoder.layer.0.attention.self.query', (2, 8))], tensor([0.2500, 0.2500]))
    """

    structure: ClassVar[str] = "balora"
    layer: ClassVar[type[AdaptedLinear]] = NoisyDownLinear

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        drop: float = 0.1,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        check_drop(drop)
        self.drop = drop
        if prior is None:
            prior = dist.Normal(torch.tensor(0.0), torch.tensor((drop / (1.0 - drop)) ** 0.5))
        random: dict[str, Any] = {"parts": [Part.NOISE], "granularity": Granularity.SEQUENCE, "prior": prior}
        super().__init__(backbone, likelihood, **random, **options)

    def start(self, site: Site) -> Tensor:
        if site.part != Part.NOISE:
            return super().start(site)
        return torch.ones(site.shape, device=next(self.parameters()).device)

    def config(self) -> dict[str, Any]:
        return super().config() | {"drop": self.drop}
