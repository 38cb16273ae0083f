"""Arguments in the wrong order or of the wrong kind are named, and nothing has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bayes_adapters import ELBO, Batch, Bernoulli, Frames, Targets, load, predict, save, systems
from bayes_adapters.errors import ConfigError, DataError, TargetError
from bayes_adapters.guides import Contextual, MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, DiagonalCore, LoRA, StochasticCore, Wander
from bayes_adapters.schedules import Blundell, Cyclic, LinearWarmup
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit
from tests.errors.parts import check
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.training.parts import Items, join


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    with unchecked():
        yield


def pair() -> tuple[Any, Any]:
    model = core_model()
    return model, MeanField(model)


def test_model_and_guide_in_the_wrong_order(tmp_path: Path) -> None:
    model, guide = pair()
    facts = ["a MeanField", "a StochasticCore"]
    for call in (
        lambda: ELBO(guide, model),
        lambda: predict(guide, model, token_batch()),
        lambda: fit(guide, model, [token_batch()], epochs=1),
        lambda: save(tmp_path / "a", guide, model),
    ):
        check(call, ConfigError, facts, model, guide)
    assert not (tmp_path / "a").exists()


def test_a_class_in_the_place_of_an_object() -> None:
    model: Any = core_model()
    facts = ["a StochasticCore", "the class Contextual"]
    check(lambda: fit(model, Contextual, [token_batch()], epochs=1), ConfigError, facts, model)  # type: ignore[arg-type]
    check(lambda: LoRA(bert(), Bernoulli), ConfigError, ["the class Bernoulli"])  # type: ignore[arg-type]
    check(lambda: MeanField(StochasticCore), ConfigError, ["the class StochasticCore"])  # type: ignore[arg-type]


def test_the_name_of_a_system_comes_first() -> None:
    net: Any = bert()
    check(lambda: build(net, "c-lora", Bernoulli()), ConfigError, ["(name, backbone, likelihood)", "a BertModel"], net)
    check(lambda: build("C-LoRA", net, Bernoulli()), ConfigError, ["'C-LoRA'", "'c-lora'"], net)


def test_a_guide_on_another_device() -> None:
    model = core_model()
    guide = Contextual(model).to("meta")
    facts = ["cpu", "meta", "guide.to('cpu')"]
    check(lambda: predict(model, guide, token_batch()), ConfigError, facts, model)
    check(lambda: fit(model, guide, [token_batch()], epochs=1), ConfigError, facts, model)


@pytest.mark.parametrize("part", ["inputs['input_ids']", "context['audio']", "targets"])
def test_a_batch_on_another_device(part: str) -> None:
    model, guide = pair()
    given = token_batch()
    ids, targets, audio = given.inputs["input_ids"], given.targets, given.context["audio"]
    assert targets is not None
    batch = Batch(
        {"input_ids": ids.to("meta") if part.startswith("inputs") else ids},
        targets.to("meta") if part == "targets" else targets,
        {"audio": audio.to("meta") if part.startswith("context") else audio},
    )
    check(lambda: ELBO(model, guide)(batch), DataError, [part, "meta", "cpu", "batch.to('cpu')"])


def test_a_guide_needs_a_model() -> None:
    check(lambda: Contextual(bert()), ConfigError, ["StochasticCore", "a BertModel"])


def test_likelihood_and_backbone_in_the_wrong_order() -> None:
    backbone: Any = bert()
    check(
        lambda: StochasticCore(Bernoulli(), backbone),
        ConfigError,
        ["a BertModel", "(backbone, likelihood)"],
        backbone,
    )


def test_directory_and_backbone_in_the_wrong_order(tmp_path: Path) -> None:
    backbone: Any = bert()
    check(lambda: load(backbone, str(tmp_path)), ConfigError, ["load()", "(directory, backbone)", "a BertModel"])
    model, guide = pair()
    check(lambda: save(model, guide, tmp_path), ConfigError, ["save()", "(directory, model, guide)"])


def test_a_tokenizers_output_is_no_batch() -> None:
    model, guide = pair()
    inputs: Any = dict(token_batch().inputs)
    check(lambda: model(inputs), DataError, ["a dict", "Batch(inputs, targets)"])
    check(lambda: predict(model, guide, inputs), DataError, ["a dict", "Batch(tokens)"])


@pytest.mark.parametrize(
    ("parts", "facts"),
    [
        ({"inputs": torch.zeros(2, 3)}, ("inputs", "a Tensor")),
        ({"context": None}, ("context", "a NoneType")),
        ({"context": Frames(torch.zeros(2, 1, 3), torch.ones(2, 1).bool())}, ("context", "a Frames")),
        (
            {"context": {"audio": torch.zeros(2, 1, 3)}},
            ("context['audio']", "Frames(values, mask)", "a Tensor"),
        ),
    ],
)
def test_parts_of_a_batch(parts: dict[str, Any], facts: tuple[object, ...]) -> None:
    given = {"inputs": {"input_ids": torch.ones(2, 3, dtype=torch.long)}} | parts
    with refuses(DataError, *facts):
        Batch(**given)


def test_arrays_are_converted_by_the_caller() -> None:
    values: Any = torch.zeros(2, 4, CONTEXT)
    with refuses(DataError, "Frames' values", "numpy.ndarray", "torch.as_tensor(array)"):
        Frames(values.numpy(), torch.ones(2, 4).bool())
    mask: Any = torch.ones(2, 4).bool().numpy()
    with refuses(DataError, "Frames' mask", "numpy.ndarray", "torch.as_tensor(array)"):
        Frames(values, mask)


@pytest.mark.parametrize("other", [-1e9, 0.5, 2.0])
def test_a_mask_that_is_added_to_scores_is_not_read_inverted(other: float) -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    ids = torch.ones(2, 3, dtype=torch.long)
    assert Batch({"input_ids": ids, "attention_mask": mask}).token_mask is not None
    with refuses(DataError, "attention_mask", 0, 1, f"{other:g}"):
        Batch({"input_ids": ids, "attention_mask": torch.where(mask == 1, 1.0, other)})


@pytest.mark.parametrize("layers", [0, "0", [0.5]])
def test_blocks_that_are_no_list(layers: Any) -> None:
    net = bert()
    facts = ["layers", repr(layers)]
    check(lambda: LoRA(net, Bernoulli(), targets=Targets(["query"], layers=layers)), TargetError, facts, net)


@pytest.mark.parametrize("option", ["optimizer", "scheduler", "evaluate", "on_step"])
def test_fit_takes_functions_and_no_names(option: str) -> None:
    model, guide = pair()
    options: dict[str, Any] = {option: "adam"}
    facts = [option, "'adam'"]
    check(lambda: fit(model, guide, [token_batch()], epochs=1, **options), ConfigError, facts, model, guide)


@pytest.mark.parametrize("seed", [1.5, "a"])
def test_a_seed_is_an_integer(seed: Any) -> None:
    model, guide = pair()
    facts = ["seed", repr(seed)]
    check(lambda: predict(model, guide, token_batch(), seed=seed), ConfigError, facts, model, guide)
    check(lambda: fit(model, guide, [token_batch()], epochs=1, seed=seed), ConfigError, facts, model, guide)
    check(lambda: batches(token_batch(), 2, seed=seed), ConfigError, facts)


def test_integers_and_numbers_of_numpy(tmp_path: Path) -> None:
    model, guide = pair()
    plain = predict(model, guide, token_batch(), seed=3).mean
    assert torch.equal(predict(model, guide, token_batch(), seed=np.int64(3)).mean, plain)
    options: dict[str, Any] = {"seed": np.int64(3), "clip_norm": np.float32(1.0), "checkpoint": tmp_path}
    fit(model, guide, batches(token_batch(), 5, seed=np.int64(3)), epochs=1, progress=False, **options)


PLANS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "start": (lambda value: PruneSchedule(3.0, start=value), 2.5),
    "every": (lambda value: PruneSchedule(3.0, every=value), 0.5),
    "until": (lambda value: PruneSchedule(3.0, until=value), "end"),
    "window": (Blundell, 316.4),
    "steps": (LinearWarmup, 2.5),
    "period": (Cyclic, "10"),
}


@pytest.mark.parametrize("name", PLANS)
def test_schedules_count_whole_steps(name: str) -> None:
    build, value = PLANS[name]
    check(lambda: build(value), ConfigError, [name, 1, repr(value)])


def test_a_backbone_with_a_task_head() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert()
            self.config = self.inner.config

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs).to_tuple()

    model = LoRA(Headed(), Bernoulli())
    with refuses(ConfigError, "Headed", "last_hidden_state", "AutoModel.from_pretrained(...)", "return_dict=True"):
        model(token_batch())


@pytest.mark.parametrize("given", [None, "bert-base-uncased"])
def test_a_backbone_that_is_no_module(given: Any) -> None:
    builds = [
        lambda: LoRA(given, Bernoulli()),
        lambda: DiagonalCore(given, Bernoulli(), num_data=4),
        lambda: systems.build("lora", given, Bernoulli()),
    ]
    for attempt in builds:
        check(attempt, ConfigError, ["backbone", type(given).__name__])


def test_models_of_inference_mode() -> None:
    backbone: Any = bert()
    with torch.inference_mode():
        check(lambda: StochasticCore(backbone, Bernoulli()), ConfigError, ["torch.inference_mode()"], backbone)


def test_a_distribution_class_is_no_prior() -> None:
    prior: Any = dist.Normal
    with refuses(ConfigError, "prior", "the class Normal", "Normal(0.0, 0.2)"):
        core_model(prior=prior)
    prior = torch.distributions.Normal(0.0, 1.0)
    with refuses(ConfigError, "prior", "torch.distributions.normal.Normal", "callable(name, shape)"):
        core_model(prior=prior)


def test_a_data_set_of_another_size_than_num_data() -> None:
    model = core_model("global", num_data=50)
    guide = MeanField(model)
    source = batches(token_batch(12), 4)
    facts = ["num_data=50", "12 examples", "num_data=12"]
    check(lambda: fit(model, guide, source, epochs=1), ConfigError, facts, model, guide)
    loader: Any = DataLoader(Items(), batch_size=4, collate_fn=join)
    check(
        lambda: fit(model, guide, loader, epochs=1),
        ConfigError,
        ["num_data=50", "22 examples", "num_data=22"],
        model,
        guide,
    )
    masked = AdapterDropout(bert(), Bernoulli(), granularity="global")  # has no KL
    fit(masked, MCDropout(masked), source, max_steps=1, progress=False)
    fit(model, guide, [token_batch(12)], epochs=1, progress=False)  # a list does not say how large the data set is
    local = core_model("token", num_data=50)  # has one KL an example
    fit(local, MeanField(local), source, epochs=1, progress=False)


def test_factors_of_a_fusion_have_one_kl_a_data_set_too() -> None:
    nets = nn.ModuleDict({"a": bert(), "b": bert(seed=1)})
    model = Wander(nets, Bernoulli(), num_data=50, lengths={"a": 2, "b": 2}, fusion_rank=2, terms=2)
    guide, ids = MeanField(model), token_batch(12).inputs["input_ids"]
    source = batches(Batch({"a.input_ids": ids, "b.input_ids": ids}, torch.zeros(12)), 4)
    check(
        lambda: fit(model, guide, source, epochs=1),
        ConfigError,
        ["num_data=50", "12 examples", "num_data=12"],
        model,
        guide,
    )


def test_amortised_guides_are_float32_under_any_backbone() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = core_model(backbone=bert().double())
        guide = Contextual(model)
        fit(model, guide, [token_batch()], epochs=1, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in guide.parameters()} == {torch.float32}
    with refuses(ConfigError, "Contextual", "torch.float64", "float32", "guide.float()"):
        predict(model, guide.double(), token_batch())
