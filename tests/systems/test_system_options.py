"""Presets' options, backbones' query and value, and mistakes that are caught."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from torch import nn

from bayes_adapters import Bernoulli, Categorical, adapted_layers, systems
from bayes_adapters.errors import ConfigError, TargetError
from bayes_adapters.systems import SYSTEMS, build
from examples.studies.matrix_cells import SIZE
from examples.studies.tiny import BACKBONES, WIDTH, make
from tests.refusals import refuses
from tests.systems.parts import NAMES, backbone_of, required


@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_is_allowed_can_be_given(name: str) -> None:
    """Each at its default, all at once: none is fixed by the class and none is unknown to it."""
    system = SYSTEMS[name]
    allowed = system.options()
    # what both take, both read: the head sees the context that conditions the cores
    assert set(allowed["model"]) & set(allowed["guide"]) <= {"context_dim", "modality", "gate"}
    assert set(system.model_options) <= set(allowed["model"])
    assert set(system.guide_options) <= set(allowed["guide"])
    given: dict[str, Any] = {}
    for kind, cls in (("model", system.model), ("guide", system.guide)):
        for base in reversed(inspect.getmro(cls)):
            if "__init__" in vars(base):
                parameters = inspect.signature(base.__init__).parameters
                given |= {o: parameters[o].default for o in allowed[kind] if o in parameters}
    given = {o: v for o, v in given.items() if v is not inspect.Parameter.empty}
    given |= system.model_options | system.guide_options | required(name) | {"num_data": SIZE}
    if "cola" in name:
        given["gamma"] = 2
    model, guide = build(name, make(backbone_of(name)), Bernoulli(), **given)
    assert (type(model).__name__, type(guide).__name__) == NAMES[name]


def test_overrides_reach_model_and_guide() -> None:
    options: dict[str, Any] = {"rank": 2, "targets": ["o_proj"], "heads": 2, "dim": 4, "pooling": "last"}
    model, guide = build("caliber-x", make("Llama"), Categorical(4), context_dim=3, **options)
    assert (model.rank, model.layers, model.pooling) == (2, ["layers.0.self_attn.o_proj"], "last")
    assert (guide.config()["dim"], guide.config()["heads"], guide.config()["context_dim"]) == (4, 2, 3)
    assert SYSTEMS["caliber-x"].guide_options["dim"] == 64


@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("caliberx", {}, ("'caliberx'", "'caliber-x'", "'caliber-g'")),
        ("tfb", {}, ("'tfb'", "training_free.bayesianise")),
        ("c-lora", {"rnak": 4}, ("c-lora", "'rnak'", "'rank'")),
        ("c-lora", {"context_dim": 4}, ("c-lora", "'context_dim'", "rank")),
        ("caliber-x", {"context_dim": 4, "context": "none"}, ("caliber-x", "'context'", "'context_dim'")),
        ("lora", {"granularity": "token"}, ("lora", "'granularity'", "rank")),
        ("caliber-x", {}, ("caliber-x", "context_dim=")),
        ("lora-fusion", {}, ("lora-fusion", "context_dim=")),
        ("blob", {}, ("blob", "num_data=")),
        ("wander", {}, ("wander", "lengths=, num_data=")),
        ("caliber-x", {"context_dim": 4, "heads": 3}, ("heads=3", "dim=64")),
        ("c-lora", {"granularity": "global", "num_data": 9}, ("'core.global'", "global", "sequence, token")),
        ("c-lora", {"rank": 0}, ("rank", 1, 0)),
    ],
)
def test_mistakes_leave_the_backbone_as_it_was(name: str, options: dict[str, Any], facts: tuple[object, ...]) -> None:
    backbone = make("BERT")
    before = {n: p.requires_grad for n, p in backbone.named_parameters()}
    with refuses(ConfigError, *facts):
        build(name, backbone, Bernoulli(), **options)
    assert not adapted_layers(backbone)
    assert {n: p.requires_grad for n, p in backbone.named_parameters()} == before


@pytest.mark.parametrize(("name", "expected"), [
    ("BERT", ["query", "value"]), ("RoBERTa", ["query", "value"]), ("DistilBERT", ["q_lin", "v_lin"]),
    ("GPT-2", ["c_attn"]), ("Llama", ["q_proj", "v_proj"]), ("ViT", ["q_proj", "v_proj"]),
    ("Whisper encoder", ["q_proj", "v_proj"]), ("wav2vec 2.0", ["q_proj", "v_proj"]),
])  # fmt: skip
def test_query_and_value_of_every_backbone(name: str, expected: list[str]) -> None:
    assert name in BACKBONES
    assert systems.query_value(make(name)) == expected


@pytest.mark.parametrize("name", ["lora", "c-lora"])
def test_a_backbone_that_is_adapted_already_is_named_as_such(name: str) -> None:
    backbone = make("BERT")
    build("blob", backbone, Bernoulli(), num_data=9)
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        build(name, backbone, Bernoulli())
    assert len(adapted_layers(backbone)) == 2


def test_a_backbone_with_other_names_is_refused() -> None:
    odd = nn.ModuleDict({"left": nn.Linear(WIDTH, WIDTH), "right": nn.Linear(WIDTH, WIDTH)})
    with refuses(TargetError, "ModuleDict", "targets=", "left, right", "'all-linear'"):
        systems.query_value(odd)
