"""Presets: what each name builds, that papers' training comes out as written, and which mistakes are caught."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, adapted_layers, predict, systems
from bayes_adapters.errors import ConfigError, TargetError
from bayes_adapters.handlers import KLMode
from bayes_adapters.pruning import PruneSchedule
from bayes_adapters.recipes import Rate, Recipe, Unit, window
from bayes_adapters.schedules import Blundell
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.training import fit
from bayes_adapters.training._optimizer import trainable
from examples.matrix import PAIR, SIZE, build_system
from examples.tiny import BACKBONES, CONTEXT, WIDTH, batch, make

NAMES = {
    "lora": ("LoRA", "Delta"),
    "mc-dropout": ("AdapterDropout", "MCDropout"),
    "bayeslora-2025": ("AdapterDropout", "MCDropout"),
    "bayeslora-2026": ("StochasticFactors", "RankWise"),
    "blob": ("StochasticDown", "MeanField"),
    "scalabl": ("DiagonalCore", "MeanField"),
    "c-lora": ("StochasticCore", "Contextual"),
    "fixed-e": ("StochasticCore", "MeanField"),
    "coco-lora": ("StochasticCore", "Amortised"),
    "caliber-g": ("StochasticCore", "PooledContext"),
    "caliber-x": ("StochasticCore", "CrossAttention"),
    "caliber-shared-kv": ("StochasticCore", "CrossAttention"),
    "cola": ("CoLA", "Hypernetwork"),
    "bayesian-cola": ("CoLA", "Hypernetwork"),
    "lora-fusion": ("FusionLoRA", "Delta"),
    "wander": ("Wander", "Delta"),
    "bayesian-wander": ("Wander", "MeanField"),
}
SEVERAL = {"cola", "bayesian-cola", "wander", "bayesian-wander"}
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0])


def backbone_of(name: str) -> str:
    return PAIR if name in SEVERAL else "BERT"


def small(name: str) -> tuple[Any, Any, Batch]:
    model, guide = build_system(name, make(backbone_of(name)))
    return model, guide, batch(backbone_of(name), LABELS)


def required(name: str) -> dict[str, Any]:
    """The options a system has no default for, and N."""
    needs = {"context_dim": CONTEXT} if name in {"lora-fusion", "coco-lora"} or "caliber" in name else {}
    return needs | ({"lengths": {"first": 2, "second": 2}} if "wander" in name else {}) | {"num_data": SIZE}


# what a name means


def test_the_names() -> None:
    assert {n: (s.model.__name__, s.guide.__name__) for n, s in SYSTEMS.items()} == NAMES
    assert systems.names() == list(SYSTEMS)
    assert all(system.name == name and system.source for name, system in SYSTEMS.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_system_is_what_its_paper_says(name: str) -> None:
    """Built without overrides, at the paper's rank."""
    backbone = make(backbone_of(name))
    options = required(name) | ({"gamma": 2} if "cola" in name else {})
    model, guide = build(name, backbone, Bernoulli(), **options)
    assert (type(model).__name__, type(guide).__name__) == NAMES[name]
    rank, alpha = {"bayeslora-2025": (64, 8.0), "cola": (16, 8.0), "bayesian-cola": (16, 8.0)}.get(name, (8, 16.0))
    assert (model.rank, model.alpha) == (rank, alpha)
    layers = len(adapted_layers(backbone))
    assert layers == (0 if "wander" in name else 12 if "cola" in name else 6 if "bayeslora" in name else 2)
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


# options


@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_is_allowed_can_be_given(name: str) -> None:
    """Each at its default, all at once: none is fixed by the class and none is unknown to it."""
    system = SYSTEMS[name]
    allowed = system.options()
    assert not set(allowed["model"]) & set(allowed["guide"])
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
    ("name", "options", "message"),
    [
        ("caliberx", {}, r"Unknown system 'caliberx'. Did you mean 'caliber-x' or 'caliber-g'"),
        ("tfb", {}, r"'tfb' is no pair of a model and a guide: .*training_free\.bayesianise"),
        ("c-lora", {"rnak": 4}, "Unknown option of c-lora 'rnak'. Did you mean 'rank'"),
        ("c-lora", {"context_dim": 4}, "Unknown option of c-lora 'context_dim'"),
        ("caliber-x", {"context_dim": 4, "context": "none"}, "Unknown option of caliber-x 'context'.*'context_dim'"),
        ("lora", {"granularity": "token"}, "Unknown option of lora 'granularity'"),
        ("caliber-x", {}, r"caliber-x needs context_dim= \(context_dim: the width of the frames"),
        ("lora-fusion", {}, "lora-fusion needs context_dim="),
        ("blob", {}, r"blob needs num_data= \(num_data: the size of the training set"),
        ("wander", {}, "wander needs lengths=, num_data="),
        ("caliber-x", {"context_dim": 4, "heads": 3}, "heads must divide dim"),
        ("c-lora", {"granularity": "global", "num_data": 9}, "cannot infer 'core.global', which is global"),
        ("c-lora", {"rank": 0}, "rank must be a whole number"),
    ],
)
def test_mistakes_leave_the_backbone_as_it_was(name: str, options: dict[str, Any], message: str) -> None:
    backbone = make("BERT")
    before = {n: p.requires_grad for n, p in backbone.named_parameters()}
    with pytest.raises(ConfigError, match=message):
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


def test_a_backbone_with_other_names_is_refused() -> None:
    odd = nn.ModuleDict({"left": nn.Linear(WIDTH, WIDTH), "right": nn.Linear(WIDTH, WIDTH)})
    with pytest.raises(TargetError, match=r"no query and value projections of a known name; .*a list of left, right"):
        systems.query_value(odd)


# training


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_trains_the_system(name: str) -> None:
    model, guide, data = small(name)
    recipe = SYSTEMS[name].training
    options = recipe.fit_options(model, guide, num_data=SIZE, batch_size=2, max_steps=3)
    result = fit(model, guide, [data[:2], data[2:]], progress=False, validation=data, **options)
    assert result.steps == 3
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert predict(model, guide, data, num_samples=recipe.num_samples).mean.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_when_to_stop_and_names_parameters_that_exist(name: str) -> None:
    recipe = SYSTEMS[name].training
    assert (recipe.steps is None) != (recipe.epochs is None)
    model, guide, _ = small(name)
    optimizer = recipe.fit_options(model, guide, num_data=1000)["optimizer"]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trainable(model, guide))
    assert len(optimizer.param_groups) == 1 + len(recipe.rates)


def test_rates_of_bayeslora_2026() -> None:
    model, guide, _ = small("bayeslora-2026")
    optimizer = SYSTEMS["bayeslora-2026"].training.fit_options(model, guide, num_data=1000)["optimizer"]
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in trainable(model, guide).items()}
    assert found["model.head.weight"] == found["model.head.bias"] == (1e-2, 0.01)
    assert {v for k, v in found.items() if k.startswith("guide.log_variance")} == {(1e-4, 0.0)}
    assert {v for k, v in found.items() if k.startswith("guide.loc")} == {(1e-3, 0.0)}


@pytest.mark.parametrize(
    ("examples", "expected"),
    [(640, 316), (1116, 393), (2248, 517), (2556, 544), (4956, 706), (2488, 538), (9424, 909), (512, 289)],
)
def test_window_of_the_papers_data_sets(examples: int, expected: int) -> None:
    """N is what a loader with batches of 4 yields."""
    assert window(examples, 4) == expected
    assert window(1, 1000) == 1


def last_of_a_window(recipe: Recipe, model: Any, guide: Any, num_data: int, size: int) -> tuple[Any, float]:
    options = recipe.fit_options(model, guide, num_data=num_data, batch_size=size)
    schedule = options["kl_weight"]
    assert isinstance(schedule, Blundell)
    assert schedule.window == window(num_data, size)
    step = schedule.window - 1
    pi = 2.0**schedule.window / (2.0 ** (schedule.window + 1) - 1)
    terms = ELBO(model, guide, kl_weight=schedule, kl_mode=options["kl_mode"]).terms
    return (lambda data: terms(data, step)), pi


@pytest.mark.parametrize(("name", "most"), [("blob", 1.0), ("scalabl", 0.1)])
def test_a_kl_of_weights_is_weighted_as_in_the_code(name: str, most: float) -> None:
    """loss = mean nll + w π_i · KL of all weights, whatever N."""
    model, guide, data = small(name)
    terms, pi = last_of_a_window(SYSTEMS[name].training, model, guide, SIZE, SIZE)
    torch.manual_seed(3)
    found = terms(data).kl
    torch.manual_seed(3)
    guide(data)
    whole = sum(
        torch.distributions.kl_divergence(guide.trace.nodes[s.name]["fn"].base_dist, model.prior.of(s).base_dist).sum()
        for s in model.sites
    )
    torch.testing.assert_close(found, most * pi * whole, rtol=1e-4, atol=1e-6)


def test_c_loras_kl_is_weighted_as_in_the_code() -> None:
    """loss = mean nll + π_i · 1e-6 / L · KL summed over batch, layers and tokens (here real ones)."""
    model, guide, data = small("c-lora")
    terms, pi = last_of_a_window(SYSTEMS["c-lora"].training, model, guide, 512, SIZE)
    torch.manual_seed(3)
    found = terms(data).kl
    torch.manual_seed(3)
    whole = ELBO(model, guide).terms(data).kl * SIZE
    torch.testing.assert_close(found, 1e-6 * pi / 2 * whole, rtol=1e-4, atol=0.0)
    assert len(model.sites) == 2


def test_bayeslora_2026_weighs_the_whole_kl_and_prunes() -> None:
    model, guide, data = small("bayeslora-2026")
    options = SYSTEMS["bayeslora-2026"].training.fit_options(model, guide, num_data=SIZE, batch_size=SIZE)
    whole = ELBO(model, guide).terms(data).kl * SIZE
    found = ELBO(model, guide, kl_weight=options["kl_weight"]).terms(data).kl
    torch.testing.assert_close(found, 1e-6 * whole, rtol=1e-4, atol=0.0)
    assert options["on_step"] == PruneSchedule(threshold=4.0, start=2000, every=2000)
    assert (options["max_steps"], options["clip_norm"]) == (9999, 0.1)


def test_the_point_estimates_of_the_papers_have_no_kl() -> None:
    for name in ("lora", "cola", "wander", "lora-fusion"):
        model, guide, _ = small(name)
        assert SYSTEMS[name].training.fit_options(model, guide, num_data=100)["kl_weight"](5) == 0.0
    model, guide, _ = small("caliber-x")
    options = SYSTEMS["caliber-x"].training.fit_options(model, guide, num_data=100)
    assert (options["kl_weight"](0), options["kl_mode"]) == (1e-4, KLMode.PER_TOKEN_MEAN)


def rates_of(name: str, num_data: int, **options: Any) -> tuple[list[float], int]:
    model, guide, _ = small(name)
    found = SYSTEMS[name].training.fit_options(model, guide, num_data=num_data, **options)
    optimizer, steps = found["optimizer"], found["max_steps"]
    scheduler = found["scheduler"](optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates, steps


def test_warm_up_and_decay() -> None:
    rates, steps = rates_of("lora", 100, max_steps=100)
    assert steps == 100
    assert max(rates) == pytest.approx(1e-4)
    assert rates[:6] == pytest.approx([1e-4 * i / 6 for i in range(1, 7)])
    assert rates[6:] == pytest.approx([1e-4 * (100 - i) / 94 for i in range(6, 100)])
    rates, steps = rates_of("c-lora", 512)
    assert steps == 1500
    assert rates[299] == pytest.approx(1e-4)  # 6 % of 5000
    assert rates[1499] == pytest.approx(1e-4 * 3501 / 4700)


def test_colas_rate_falls_by_epochs() -> None:
    rates, steps = rates_of("cola", 200, batch_size=80)
    assert steps == 150 * 3
    assert rates == pytest.approx([1e-4 * (1 - step // 3 / 150) ** 0.9 for step in range(450)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_data": 0}, "num_data must be at least 1"),
        ({"num_data": 9, "batch_size": 0}, "batch_size must be at least 1"),
        ({"num_data": 9, "batch_size": 10}, "There are 9 examples and 10 in a batch"),
        ({"num_data": 9, "max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_wrong_sizes_of_a_recipe(options: dict[str, Any], message: str) -> None:
    model, guide, _ = small("lora")
    with pytest.raises(ConfigError, match=message):
        SYSTEMS["lora"].training.fit_options(model, guide, **options)


def test_a_recipe_with_nothing_to_train() -> None:
    model, guide, _ = small("lora")
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        Recipe(lr=1e-3, steps=1, rates={"model.head.*": Rate(1.0)}, kl_unit=Unit.WHOLE).fit_options(
            model, guide, num_data=9
        )


# the documents name them


def test_the_readme_has_every_name() -> None:
    table = (Path(__file__).resolve().parents[1] / "README.md").read_text().split("## Methods")[1].split("\n## ")[0]
    named = {cell.strip(" `") for line in table.splitlines() if line.startswith("| `") for cell in line.split("|")[1:2]}
    assert named == {*SYSTEMS, *systems.PROCEDURES}
    for line in table.splitlines():
        name = line.split("|")[1].strip(" `") if line.startswith("| `") else ""
        if name in SYSTEMS:
            assert f"`{NAMES[name][0]}" in line, line
            assert f"`{NAMES[name][1]}" in line, line
