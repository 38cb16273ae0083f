"""Presets: what each name builds, and that the documents name them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from bayes_adapters import Bernoulli, adapted_layers, systems
from bayes_adapters.systems import SYSTEMS, build
from examples.studies.matrix_cells import PAIR
from examples.studies.tiny import make
from tests.systems.parts import NAMES, backbone_of, required


def test_the_names() -> None:
    assert {n: (s.model.__name__, s.guide.__name__) for n, s in SYSTEMS.items()} == NAMES
    assert systems.names() == list(SYSTEMS)
    assert all(system.name == name and system.source for name, system in SYSTEMS.items())


TWO_ENCODERS = ("concat-lora", "cola", "bayesian-cola")


@pytest.mark.parametrize("name", NAMES)
def test_a_system_is_what_its_paper_says(name: str) -> None:
    """Built without overrides, at the paper's rank."""
    backbone = make(backbone_of(name))
    options = required(name) | ({"gamma": 2} if "cola" in name else {})
    model, guide = build(name, backbone, Bernoulli(), **options)
    assert (type(model).__name__, type(guide).__name__) == NAMES[name]
    rank, alpha = {"bayeslora-2025": (64, 8.0), **dict.fromkeys(TWO_ENCODERS, (16, 8.0))}.get(name, (8, 16.0))
    assert (model.rank, model.alpha) == (rank, alpha)
    layers = len(adapted_layers(backbone))
    assert layers == (0 if "wander" in name else 12 if name in TWO_ENCODERS else 6 if "bayeslora" in name else 2)
    assert guide.model is model


def test_the_details_that_tell_systems_apart() -> None:
    def guide(name: str) -> dict[str, Any]:
        return build(name, make("BERT"), Bernoulli(), **required(name))[1].config()

    def model(name: str) -> dict[str, Any]:
        return build(name, make("BERT"), Bernoulli(), **required(name))[0].config()

    assert guide("caliber-shared-kv")["share_kv"]
    assert not guide("caliber-x")["share_kv"]
    assert guide("coco-lora")["context"] == "global_shared_heads"
    assert (model("mc-dropout")["drop"], model("bayeslora-2025")["drop"]) == (0.1, 0.15)
    assert {model(n)["granularity"] for n in ("c-lora", "fixed-e", "caliber-x", "coco-lora", "mc-dropout")} == {"token"}
    assert guide("blob")["parameter"] == "root"
    assert guide("bayeslora-2026")["init_log_variance"] == -8.0
    blob: Any = build("blob", make("BERT"), Bernoulli(), num_data=9)[1]
    rho = torch.cat([p.detach().flatten() for p in blob.rho.values()])
    assert 0.05 / math.sqrt(2) - 1e-6 <= float(rho.min()) < float(rho.max()) <= 0.05 + 1e-6  # U(eps/√2, eps)
    scalabl: Any = build("scalabl", make("BERT"), Bernoulli(), num_data=9)[1]
    scale = torch.cat([p.detach().exp().flatten() for p in scalabl.rho.values()])
    assert 0.05 / math.sqrt(2) - 1e-6 <= float(scale.min()) < float(scale.max()) <= 0.05 + 1e-6
    pairs = {name: build(name, make(PAIR), Bernoulli(), gamma=2) for name in ("cola", "bayesian-cola")}
    scales = {name: own.config()["scale"] for name, (_, own) in pairs.items()}
    assert scales == {"cola": None, "bayesian-cola": "softplus"}


COUNTS = {"c-lora": 213_504, "coco-lora": 460_864, "caliber-x": 2_683_392, "caliber-shared-kv": 422_400}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_beside_the_adapters(name: str) -> None:
    """24 layers of a base-sized encoder, rank 8, d_a = 768, d_c = 64; what stands in for missing context left out."""
    config = BertConfig(vocab_size=9, num_hidden_layers=12)
    with torch.device("meta"):
        backbone = BertModel(config, add_pooling_layer=False)
    options = {} if name == "c-lora" else {"context_dim": 768, "null_context": False}
    model, guide = build(name, backbone, Bernoulli(), **options)
    assert sum(p.numel() for p in guide.parameters()) == COUNTS[name]
    assert sum(p.numel() for p in model.trainable_parameters().values()) == 294_912 + 769
