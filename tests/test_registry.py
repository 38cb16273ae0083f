"""Names of models, guides, likelihoods and heads: built in, registered by a program, or offered by a package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli, likelihoods, load, predict, registry, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import bert, core_model, token_batch

SOURCE = """
from typing import ClassVar
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import LinearHead
from bayes_adapters.likelihoods import Bernoulli

class WideMeanField(MeanField):
    name: ClassVar[str] = "wide_mean_field"

    def __init__(self, model, *, factor=2.0):
        super().__init__(model, init_scale=0.1 * factor)
        self.factor = factor

    def config(self):
        return {"factor": self.factor}

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
wide_mean_field = third_party_adapters:WideMeanField
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


def install(folder: Path, entry_points: str, name: str = "third-party-adapters") -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real distribution on sys.path, found by importlib.metadata as an installed one is."""
    folder = tmp_path / "site"
    install(folder, ENTRY_POINTS)
    (folder / "third_party_adapters.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("third_party_adapters", None)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.Kind})


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
    ("kind", "name", "message"),
    [
        ("guide", "meanfield", "Unknown guide 'meanfield'. Did you mean 'mean_field'.*Allowed: .*cross_attention"),
        ("model", "zzz", "Unknown model 'zzz'. Allowed: .*fusion_lora, lora, .*stochastic_core"),
        ("likelihood", "Bernoulli", "Did you mean 'bernoulli'"),
        ("gide", "delta", "Unknown kind 'gide'. Did you mean 'guide'"),
    ],
)
def test_unknown_names_list_near_matches(kind: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
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

    with pytest.raises(ConfigError, match=r"inherits its name 'mean_field'.*registry.register"):
        registry.register(Nameless)
    with pytest.raises(ConfigError, match=r"'stochastic_core' belongs to .*StochasticCore already"):
        registry.register(Taken)
    for thing in (int, "lora", torch.nn.Linear):
        with pytest.raises(ConfigError, match="Only subclasses of AdapterModel, AdapterGuide, Likelihood and Head"):
            registry.register(thing)
    assert registry.find("model", "stochastic_core") is StochasticCore


def test_a_third_partys_guide_likelihood_and_head(third_party: Path, tmp_path: Path) -> None:
    assert "third_party_adapters" not in sys.modules
    assert {"wide_mean_field", "absent"} <= set(registry.names("guide"))
    assert "third_party_adapters" not in sys.modules, "listing names must not import packages"
    wide, coin = registry.find("guide", "wide_mean_field"), registry.find("likelihood", "coin")
    assert issubclass(wide, AdapterGuide)
    assert issubclass(coin, Bernoulli)
    doubled = registry.find("head", "doubled")
    model: AdapterModel = core_model(likelihood=coin(), head=doubled(pooling="cls"))
    guide = wide(model, factor=3.0)
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert (type(again.likelihood), type(guide_again), guide_again.config()) == (coin, wide, {"factor": 3.0})
    assert (type(again.head), again.pooling) == (doubled, "cls")
    batch = token_batch().without_targets()
    assert torch.equal(predict(model, guide, batch).mean, predict(again, guide_again, batch).mean)


def test_a_saved_adapter_whose_package_is_gone(
    third_party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = core_model()
    save(tmp_path / "adapter", model, registry.find("guide", "wide_mean_field")(model))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(third_party)])
    with pytest.raises(AdapterFileError, match=r"Unknown guide 'wide_mean_field'.*install the package"):
        load(tmp_path / "adapter", bert())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("misnamed", "calls itself 'another_name'"),
        ("nameless", "inherits its name 'mean_field'"),
        ("absent", r"package 'third-party-adapters' \(third_party_adapters:Absent\) cannot be imported"),
        ("no_module", "cannot be imported: No module named 'third_party_missing'"),
        ("not_a_guide", "is no subclass of AdapterGuide"),
    ],
)
def test_a_third_partys_mistakes(third_party: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.find("guide", name)
    assert registry.find("guide", "mean_field") is MeanField


def test_two_claims_to_a_name(third_party: Path, clean: None, tmp_path: Path) -> None:
    offer = "[bayes_adapters.guides]\nmean_field = third_party_adapters:Usurper\n"
    install(third_party, offer, "usurper")
    with pytest.raises(ConfigError, match=r"claimed by third_party_adapters:Usurper .* and .*MeanField"):
        registry.find("guide", "mean_field")
    assert registry.find("guide", "delta").__name__ == "Delta"
    install(third_party, "[bayes_adapters.guides]\nwide_mean_field = elsewhere:Wide\n", "second")
    with pytest.raises(ConfigError, match=r"'wide_mean_field' is claimed by .*elsewhere:Wide"):
        registry.find("guide", "wide_mean_field")


def test_registering_what_a_package_offers_too_is_no_conflict(third_party: Path, clean: None) -> None:
    wide: Any = registry.find("guide", "wide_mean_field")
    registry.register(wide)
    assert registry.find("guide", "wide_mean_field") is wide
    assert isinstance(sys.modules["third_party_adapters"], ModuleType)
