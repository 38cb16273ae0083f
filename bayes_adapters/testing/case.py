"""What a check runs on: a guide for one model and one batch, built anew for every check, and the models to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference.elbo import ELBO, ElboTerms
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KeyedDraws, OwnSites, PosteriorMean
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.likelihoods import Bernoulli
from bayes_adapters.models.adapter_dropout import AdapterDropout
from bayes_adapters.models.balora import BaLoRA
from bayes_adapters.models.diagonal_core import DiagonalCore
from bayes_adapters.models.gated_lora import GatedLoRA
from bayes_adapters.models.stochastic_core import StochasticCore
from bayes_adapters.models.stochastic_down import StochasticDown
from bayes_adapters.models.stochastic_factors import StochasticFactors
from bayes_adapters.testing.report import NotApplicableError

MakeGuide: TypeAlias = Callable[[AdapterModel], AdapterGuide]
MakeModel: TypeAlias = Callable[[], AdapterModel]

CONTEXT_WIDTH = 3
"""Width of the frames of the modality ``audio`` in :func:`standard_batch`."""
_VOCABULARY, _WIDTH, _NUM_DATA = 20, 8, 20


@dataclass(frozen=True)
class Case:
    """A guide to check, the model it is built for, and a batch for both.

    Args:
        make_guide: model → guide; the guide's class where it needs no more.
        make_model: makes a new model at every call, on a backbone of its own; parameters of its B that are zero are
            filled, for with B = 0 no output depends on a core.
        batch: with targets. Its examples get the numbers 0 … B−1 where they have none.
        name: of the case, in reports.
        seed: of the parameters' start and of all draws.
        spread: standard deviation of what is added to every parameter of the guide, so that none is at a special
            value such as zero; 0 leaves the guide as it is made.

    >>> from bayes_adapters import guides
    >>> case = Case(guides.MeanField, standard_models()["core, global"], standard_batch())
    >>> model, guide = case.build()
    >>> type(guide).__name__, case.batch.ids.tolist()
    ('MeanField', [0, 1, 2, 3, 4])
    """

    make_guide: MakeGuide
    make_model: MakeModel
    batch: Batch
    name: str = ""
    seed: int = 0
    spread: float = 0.02

    def __post_init__(self) -> None:
        if self.batch.targets is None:
            raise ConfigError("The batch of a case needs targets; without them there is no loss to check.")
        object.__setattr__(self, "batch", replace(self.batch, index=self.batch.ids))

    def model(self) -> AdapterModel:
        """Return a new model, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.make_model()
            with torch.no_grad():
                for name, p in model.trainable_parameters().items():
                    if name.endswith("lora_B") and not p.any():
                        p.normal_(0.0, 0.5)
        return model

    def guide(self, model: AdapterModel) -> AdapterGuide:
        """Return a new guide for ``model``, the same at every call.

        Raises:
            ConfigError: ``make_guide`` returns something else than a guide of this library.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            guide = self.make_guide(model)
            if not isinstance(guide, AdapterGuide):
                raise ConfigError(
                    f"make_guide(model) must return an AdapterGuide; it returned {described(guide)}. Pass a guide's "
                    "class or a function of the model, such as lambda model: MyGuide(model, rank=2)."
                )
            with torch.no_grad():
                for p in guide.parameters():
                    p.add_(self.spread * torch.randn_like(p))
        return guide

    def build(self) -> tuple[AdapterModel, AdapterGuide]:
        """Return a new model and its guide."""
        model = self.model()
        return model, self.guide(model)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context torch's generator starts at ``seed``; after it, it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def repeated_draws(
    model: AdapterModel, guide: AdapterGuide, batch: Batch, samples: tuple[int, ...] = (0, 1)
) -> Iterator[Any]:
    """Within the context a pass with as many particles as ``samples`` has the noise of (sample, example, token).

    The noise of an example is then the same however the data set is cut and padded. Modules are in eval mode.

    Raises:
        NotApplicableError: a posterior has neither an inverse CDF nor a mean.
    """
    numbers = torch.tensor(samples)
    with evaluating(model, guide), OwnSites(0, numbers, batch.ids, False), KeyedDraws(0, numbers, batch.ids):
        yield


def terms(model: AdapterModel, guide: AdapterGuide, batch: Batch, samples: tuple[int, ...] = (0, 1)) -> ElboTerms:
    """Return the loss and its parts, a function of the batch: at draws that belong to (sample, example, token).

    Where the posterior has no inverse CDF it is evaluated at its mean.

    Raises:
        NotApplicableError: it has no mean either.
    """
    try:
        with repeated_draws(model, guide, batch, samples):
            return ELBO(model, guide, num_particles=len(samples)).terms(batch)
    except ConfigError as no_inverse:
        guide.trace = type(guide.trace)()
        try:
            with evaluating(model, guide), PosteriorMean():
                return ELBO(model, guide).terms(batch)
        except ConfigError:
            raise NotApplicableError(f"No draw of this posterior can be repeated: {no_inverse}") from None


def latents(
    model: AdapterModel,
    guide: AdapterGuide,
    batch: Batch,
    draws: int | None = None,
    seed: int = 0,
    *,
    gradients: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the guide once; return the nodes of model and guide by site, the guide's for latent sites only.

    Args:
        model: the model.
        guide: its guide; both run in eval mode.
        batch: the batch.
        draws: S, in a plate around the guide; None has no plate.
        seed: of torch's generator.
        gradients: whether the distributions carry gradients.
    """
    with seeded(seed), torch.set_grad_enabled(gradients), evaluating(model, guide):
        if draws is None:
            guide(batch)
        else:
            with pyro.plate("draws", draws, dim=-2):
                guide(batch)
    model_trace, guide_trace = guide.get_traces()
    guide.trace = type(guide.trace)()
    nodes: dict[str, Any] = guide_trace.nodes
    latent = {name: node for name, node in nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    return dict(model_trace.nodes), latent


def with_embeddings_alike(backbone: nn.Module) -> nn.Module:
    """Set BERT's embeddings of positions to zero: a token then has one hidden state wherever it stands."""
    with torch.no_grad():
        backbone.get_submodule("embeddings.position_embeddings").get_parameter("weight").zero_()
    return backbone


def standard_backbone() -> nn.Module:
    """Return a BERT of one layer of width 8, without dropout and without positions, in eval mode."""
    from transformers import BertConfig, BertModel  # seconds to import, which only a check needs

    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=_WIDTH,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return with_embeddings_alike(BertModel(config, add_pooling_layer=False)).eval()


def standard_models() -> Mapping[str, MakeModel]:
    """Return name → a function that makes a small model; a guide is checked on each that it serves.

    Random cores per token, per sequence and for the data set; a random diagonal; a random A; random A and B, under a
    Gaussian prior; masks per token and per data set; gates on ranks; noise on A per sequence. Each has 20
    examples, of which :func:`standard_batch` holds five.
    """
    options: dict[str, Any] = {"rank": 2, "num_data": _NUM_DATA}

    def core(granularity: str) -> MakeModel:
        return lambda: StochasticCore(standard_backbone(), Bernoulli(), granularity=granularity, **options)

    def mask(granularity: str) -> MakeModel:
        return lambda: AdapterDropout(standard_backbone(), Bernoulli(), granularity=granularity, **options)

    return {
        "core, token": core("token"),
        "core, sequence": core("sequence"),
        "core, global": core("global"),
        "diagonal, global": lambda: DiagonalCore(standard_backbone(), Bernoulli(), **options),
        "A, global": lambda: StochasticDown(standard_backbone(), Bernoulli(), **options),
        "A and B, global": lambda: StochasticFactors(
            standard_backbone(), Bernoulli(), prior=dist.Normal(0.0, 0.3), **options
        ),
        "mask, token": mask("token"),
        "mask, global": mask("global"),
        "gates, global": lambda: GatedLoRA(standard_backbone(), Bernoulli(), **options),
        "noise, sequence": lambda: BaLoRA(standard_backbone(), Bernoulli(), **options),
    }


def standard_batch(size: int = 5, tokens: int = 6, seed: int = 1) -> Batch:
    """Return a batch with right padding, repeated tokens, and audio that is short in row 0 and missing in row 2."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, _VOCABULARY, (size, tokens), generator=rng)
    ids[:, 2] = ids[:, 0]
    mask = torch.ones(size, tokens, dtype=torch.long)
    mask[1::3, tokens // 2 :] = 0
    heard = torch.ones(size, 4, dtype=torch.bool)
    heard[0, 2:] = False
    heard[2::3] = False
    frames = Frames(torch.randn(size, 4, CONTEXT_WIDTH, generator=rng), heard)
    targets: Tensor = torch.arange(size) % 2
    return Batch({"input_ids": ids, "attention_mask": mask}, targets.float(), {"audio": frames}, torch.arange(size))
