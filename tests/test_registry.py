"""Names of models, guides, likelihoods and heads: built in, registered by a program, or offered by a package."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Bernoulli, likelihoods, load, predict, registry, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.export import to_lora
from tests.helpers import bert, core_model, token_batch
from tests.internals import only_registered
from tests.refusals import refuses
from tests.third_party import install, installed

SOURCE = """
from typing import ClassVar
import pyro.distributions as dist
import torch
from bayes_adapters import AdapterGuide, Granularity
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference.guide import site_key
from bayes_adapters.likelihoods import Bernoulli
from bayes_adapters.sites import Part
from torch import nn
from torch.distributions import constraints

class Triangle(dist.TorchDistribution):
    '''p(x) = (1 - |x - m| / w) / w on m - w ... m + w: the sum of two uniform variables.'''
    arg_constraints = {"loc": constraints.real, "width": constraints.positive}
    has_rsample = True

    def __init__(self, loc, width):
        self.loc, self.width = torch.broadcast_tensors(loc, width)
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        return constraints.interval(self.loc - self.width, self.loc + self.width)

    @property
    def mean(self):
        return self.loc

    def expand(self, batch_shape, _instance=None):
        return Triangle(self.loc.expand(batch_shape), self.width.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):
        both = torch.rand(2, *sample_shape, *self.loc.shape)
        return self.loc + self.width * (both.sum(0) - 1)

    def log_prob(self, value):
        return torch.log1p(-((value - self.loc) / self.width).abs()) - self.width.log()

    def icdf(self, value):
        nearer = torch.minimum(value, 1 - value)
        return self.loc + self.width * (1 - (2 * nearer).sqrt()) * (value - 0.5).sign()

class TriangularGuide(AdapterGuide):
    '''Every entry has a triangle: free means, one width per row of the core.'''
    name: ClassVar[str] = "triangular"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL, Granularity.TOKEN})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.CORE})

    def __init__(self, model, *, width=0.2):
        super().__init__(model)
        self.width = width
        starts = {site_key(site): model.start(site) for site in model.sites}
        self.loc = nn.ParameterDict({key: nn.Parameter(start) for key, start in starts.items()})
        rows = {key: torch.full((*start.shape[:-1], 1), width).log() for key, start in starts.items()}
        self.log_width = nn.ParameterDict({key: nn.Parameter(row) for key, row in rows.items()})

    def posterior(self, call, prior):
        key = site_key(call.site)
        return Triangle(self.loc[key], self.log_width[key].exp()).to_event(len(call.site.event))

    def config(self):
        return {"width": self.width}

class Coin(Bernoulli):
    name: ClassVar[str] = "coin"

class Doubled(LinearHead):
    name: ClassVar[str] = "doubled"

    def forward(self, features):
        return 2.0 * super().forward(features)

class Misnamed(MeanField):
    name: ClassVar[str] = "another_name"

class Nameless(MeanField):
    pass

class Usurper(MeanField):
    name: ClassVar[str] = "mean_field"
"""
ENTRY_POINTS = """
[bayes_adapters.guides]
triangular = third_party_adapters:TriangularGuide
misnamed = third_party_adapters:Misnamed
nameless = third_party_adapters:Nameless
absent = third_party_adapters:Absent
no_module = third_party_missing:Guide
not_a_guide = third_party_adapters:Coin

[bayes_adapters.likelihoods]
coin = third_party_adapters:Coin

[bayes_adapters.heads]
doubled = third_party_adapters:Doubled
"""


@pytest.fixture
def third_party(tmp_path: Path) -> Iterator[Path]:
    """A real distribution on sys.path, found by importlib.metadata as an installed one is."""
    with installed(tmp_path / "site", "third_party_adapters", SOURCE, ENTRY_POINTS):
        yield tmp_path / "site"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    only_registered(monkeypatch)


def test_built_ins() -> None:
    models = {"fusion_lora", "lora", "stochastic_core", "stochastic_down", "stochastic_factors"}
    assert models <= set(registry.names("model"))
    assert {"delta", "mean_field", "contextual", "pooled_context", "cross_attention"} <= set(registry.names("guide"))
    assert {"mc_dropout", "training_free"} <= set(registry.names("guide"))
    assert registry.find("model", "lora") is LoRA
    assert registry.find("guide", "contextual") is Contextual
    assert registry.find("likelihood", "heteroscedastic_gaussian") is likelihoods.HeteroscedasticGaussian
    for kind in registry.Kind:
        for name in registry.names(kind):
            assert registry.name_of(kind, registry.find(kind, name)) == name


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [
        ("guide", "meanfield", ("guide", "'meanfield'", "'mean_field'", "cross_attention")),
        ("model", "zzz", ("model", "'zzz'", "lora, lora_xs", "stochastic_core")),
        ("likelihood", "Bernoulli", ("'Bernoulli'", "'bernoulli'")),
        ("gide", "delta", ("kind", "'gide'", "'guide'")),
    ],
)
def test_unknown_names_list_near_matches(kind: str, name: str, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        registry.find(kind, name)


def test_register(clean: None, tmp_path: Path) -> None:
    @registry.register
    class Mine(MeanField):
        name: ClassVar[str] = "mine"

    assert registry.register(Mine) is Mine
    assert registry.find("guide", "mine") is Mine
    assert "mine" in registry.names("guide")
    model = core_model()
    save(tmp_path, model, Mine(model))
    assert type(load(tmp_path, bert())[1]) is Mine


def test_register_refuses(clean: None) -> None:
    class Nameless(MeanField):
        pass

    class Taken(LoRA):
        structure: ClassVar[str] = "stochastic_core"

    with refuses(ConfigError, "Nameless", "'mean_field'", "bayes_adapters.registry.register"):
        registry.register(Nameless)
    with refuses(ConfigError, "'stochastic_core'", "bayes_adapters.models.stochastic_core:StochasticCore"):
        registry.register(Taken)
    for thing in (int, "lora", torch.nn.Linear):
        with refuses(ConfigError, repr(thing), "AdapterModel, AdapterGuide, Likelihood and Head"):
            registry.register(thing)
    assert registry.find("model", "stochastic_core") is StochasticCore


def test_a_third_partys_guide_likelihood_and_head(third_party: Path, tmp_path: Path) -> None:
    assert "third_party_adapters" not in sys.modules
    assert {"triangular", "absent"} <= set(registry.names("guide"))
    assert "third_party_adapters" not in sys.modules, "listing names must not import packages"
    triangular, coin = registry.find("guide", "triangular"), registry.find("likelihood", "coin")
    assert issubclass(triangular, AdapterGuide)
    assert issubclass(coin, Bernoulli)
    doubled = registry.find("head", "doubled")
    model: AdapterModel = core_model(likelihood=coin(), head=doubled(pooling="cls"))
    guide = triangular(model, width=0.5)
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert (type(again.likelihood), type(guide_again), guide_again.config()) == (coin, triangular, {"width": 0.5})
    assert (type(again.head), again.pooling) == (doubled, "cls")
    batch = token_batch().without_targets()
    assert torch.equal(predict(model, guide, batch).mean, predict(again, guide_again, batch).mean)


def test_a_third_partys_posterior_has_the_kl_of_its_own_density(third_party: Path) -> None:
    """A triangle has entropy ½ + ln w and second moment m² + w²/6, so its KL to N(0, s²) is known."""
    model = core_model("global", prior=dist.Normal(0.0, 0.3))
    guide = registry.find("guide", "triangular")(model)
    (loc,), (log_width,) = guide.loc.values(), guide.log_width.values()
    with torch.no_grad():
        loc.normal_(0.0, 0.2)
        log_width.uniform_(-2.0, -0.5)
    cross = math.log(0.3) + 0.5 * math.log(2 * math.pi) + (loc**2 + (2 * log_width).exp() / 6) / (2 * 0.3**2)
    expected = (cross - 0.5 - log_width).sum().item() / 50  # per example of N = 50
    loss = ELBO(model, guide, num_particles=512)
    assert loss.terms(token_batch()).kl.item() == pytest.approx(expected, rel=0.02)
    loss(token_batch()).backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in (loc, log_width))
    mean = predict(model, guide, token_batch(), mean_only=True).mean
    exported = to_lora(model, guide, bert())
    torch.testing.assert_close(predict(exported, Delta(exported), token_batch()).mean, mean, rtol=1e-4, atol=1e-5)


def test_a_saved_adapter_whose_package_is_gone(
    third_party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = core_model()
    save(tmp_path / "adapter", model, registry.find("guide", "triangular")(model))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(third_party)])
    with refuses(AdapterFileError, str(tmp_path / "adapter"), "guide", "'triangular'"):
        load(tmp_path / "adapter", bert())


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("misnamed", ("'misnamed'", "'another_name'")),
        ("nameless", ("Nameless", "'mean_field'")),
        ("absent", ("'third-party-adapters'", "third_party_adapters:Absent")),
        ("no_module", ("third_party_missing",)),
        ("not_a_guide", ("third_party_adapters:Coin", "AdapterGuide")),
    ],
)
def test_a_third_partys_mistakes(third_party: Path, name: str, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        registry.find("guide", name)
    assert registry.find("guide", "mean_field") is MeanField


def test_two_claims_to_a_name(third_party: Path, clean: None, tmp_path: Path) -> None:
    offer = "[bayes_adapters.guides]\nmean_field = third_party_adapters:Usurper\n"
    install(third_party, offer, "usurper")
    with refuses(ConfigError, "'mean_field'", "third_party_adapters:Usurper (entry point)", "MeanField"):
        registry.find("guide", "mean_field")
    assert registry.find("guide", "delta").__name__ == "Delta"
    install(third_party, "[bayes_adapters.guides]\ntriangular = elsewhere:Wide\n", "second")
    with refuses(
        ConfigError,
        "'triangular'",
        "elsewhere:Wide (entry point)",
        "third_party_adapters:TriangularGuide (entry point)",
    ):
        registry.find("guide", "triangular")


def test_registering_what_a_package_offers_too_is_no_conflict(third_party: Path, clean: None) -> None:
    wide: Any = registry.find("guide", "triangular")
    registry.register(wide)
    assert registry.find("guide", "triangular") is wide
    assert isinstance(sys.modules["third_party_adapters"], ModuleType)
