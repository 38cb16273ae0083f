"""Heads: the default is what it was, others come as objects, are saved by name, and may be random or read anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, Tagging, load, predict, save
from bayes_adapters.adapters.forward_pass import current_pass
from bayes_adapters.adapters.linear import kaiming
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads import BackboneOutput, Head, LinearHead, Pooling, TwoLayerHead
from bayes_adapters.heads._checks import require_head
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import AdapterDropout, ConcatLoRA, FusionLoRA, LoRA, StochasticCore
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, VOCAB, WIDTH, bert, fill_B, token_batch
from tests.internals import only_registered
from tests.refusals import refuses


class Letters(Head):
    """Answers by letters: the model's own logits, its scaling and all, at the last real token."""

    name: ClassVar[str] = "letters"

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids = ids

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing to train."""

    def read(self, output: BackboneOutput) -> Tensor:
        return Pooling.LAST(output.value.logits[..., self.ids], output.mask)

    def forward(self, features: Tensor) -> Tensor:
        return features

    def config(self) -> dict[str, Any]:
        return {"ids": self.ids}


class RandomLinear(Head):
    """A linear layer whose weights are one global sample site."""

    name: ClassVar[str] = "random_linear"

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        shape = (likelihood.num_outputs, width)
        return [Site("head.weight", Part.FACTOR, ("head.weight",), shape, Granularity.GLOBAL)]

    def build(self, width: int, likelihood: Likelihood) -> None:
        self.bias = nn.Parameter(torch.zeros(likelihood.num_outputs))

    def forward(self, features: Tensor) -> Tensor:
        forward_pass = current_pass()
        assert forward_pass is not None
        weight = forward_pass.weights[Part.FACTOR, "head.weight"].value  # (*S, 1, K, d), or (K, d) without samples
        weight = weight.reshape(-1, *weight.shape[-2:])
        rows = features.reshape(len(weight), -1, features.shape[-1])
        return (rows @ weight.mT + self.bias).reshape(len(features), -1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    only_registered(monkeypatch, Letters, RandomLinear)
    return


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.mean, b.mean) and torch.equal(a.epistemic, b.epistemic)


# the default


def test_the_default_head_is_torchs_linear_layer() -> None:
    """For one seed it starts at the values that torch's layer has after the adapters' have been drawn."""
    nets = [bert(), bert()]
    torch.manual_seed(5)
    model = LoRA(nets[0], Categorical(3))
    torch.manual_seed(5)
    other = LoRA(nets[1], Categorical(3), head=LinearHead())
    torch.manual_seed(5)
    for _ in model.layers:
        kaiming(model.rank, WIDTH)
    expected = nn.Linear(WIDTH, 3)
    for head in (model.head, other.head):
        assert [name for name, _ in head.named_parameters()] == ["weight", "bias"]
        assert torch.equal(head.weight, expected.weight)
        assert torch.equal(head.bias, expected.bias)


def test_the_default_heads_saved_format_has_no_new_entry(tmp_path: Path) -> None:
    model = LoRA(bert(), Categorical(3), pooling="cls")
    save(tmp_path, model, Delta(model))
    about = json.loads((tmp_path / "adapter.json").read_text())
    assert about["model"]["config"]["pooling"] == "cls"
    assert not {"head", "frozen"} & set(about)
    assert {"model.head.weight", "model.head.bias"} < set(about["weights"]["tensors"])
    assert load(tmp_path, bert())[0].pooling == "cls"


def test_names_of_the_structures_own_heads() -> None:
    fusion = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, fusion_width=5)
    concat = ConcatLoRA(nn.ModuleDict({"text": bert(1)}), Bernoulli(), head_width=5)
    assert [n for n, _ in fusion.head.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [n for n, _ in concat.head.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert fusion.head.get_parameter("0.weight").shape == (5, WIDTH + CONTEXT)


# other heads


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_two_layers_by_hand(pooling: str) -> None:
    model = LoRA(bert(), Categorical(3), head=TwoLayerHead(5, pooling=pooling))
    batch = token_batch().without_targets()
    hidden = model.backbone(**batch.inputs).last_hidden_state
    mask = batch.inputs["attention_mask"][..., None]
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    weights = [p.detach() for p in model.head.parameters()]
    expected = (pooled @ weights[0].T + weights[1]).relu() @ weights[2].T + weights[3]
    torch.testing.assert_close(predict(model, Delta(model), batch).mean, expected.softmax(-1).detach())


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian()])
def test_another_head_trains_and_is_loaded_again(tmp_path: Path, likelihood: Likelihood) -> None:
    model = StochasticCore(bert(), likelihood, granularity="token", head=TwoLayerHead(5, relu=False, pooling="last"))
    guide = MeanField(fill_B(model))
    targets = torch.tensor([0, 1, 2, 1, 0])
    batch = token_batch(targets=targets if isinstance(likelihood, Categorical) else targets.float())
    before = model.head.get_parameter("0.weight").detach().clone()
    fit(model, guide, batch, epochs=2, progress=False)
    assert not torch.equal(before, model.head.get_parameter("0.weight"))
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert (type(again.head), again.head.config()) == (TwoLayerHead, {"pooling": "last", "hidden": 5, "relu": False})
    assert same(predict(model, guide, batch), predict(again, guide_again, batch))


def causal(logit_scale: float = 3.0) -> nn.Module:
    """A causal language model whose output path is more than its output layer's rows."""

    class Scaled(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * logit_scale
            return output

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Scaled(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=32, **sizes)).eval()


def test_a_head_reads_the_models_own_logits(tmp_path: Path) -> None:
    options: Any = {"granularity": "token", "targets": ["q_proj", "v_proj"]}
    model = fill_B(StochasticCore(causal(), Categorical(3), head=Letters([4, 9, 2]), **options))
    guide = MeanField(model)
    batch = token_batch().without_targets()
    found = predict(model, guide, batch, mean_only=True)
    guide(batch)
    last = batch.inputs["attention_mask"].sum(1) - 1
    with torch.no_grad(), model.adapters_disabled():
        plain = model.backbone(**batch.inputs).logits[torch.arange(5), last][:, [4, 9, 2]].softmax(-1)
    assert not torch.allclose(found.mean, plain, atol=1e-3), "the adapters act on the logits"
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, causal())
    assert same(predict(model, guide, batch), predict(again, guide_again, batch))
    lora = LoRA(causal(), Categorical(3), head=Letters([4, 9, 2]), targets=["q_proj"])  # B = 0: the frozen model
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, plain)


def test_a_random_head_has_one_kl_per_data_set_and_its_own_draws(tmp_path: Path) -> None:
    prior = dist.Normal(torch.tensor(0.0), torch.tensor(2.0))
    model = LoRA(bert(), Categorical(3), head=RandomLinear("cls"), num_data=50, prior=prior)
    guide = MeanField(model, init_scale=0.5)
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))
    loc = guide.state_dict()
    kl = ELBO(model, guide).terms(batch).kl
    mean = next(value for name, value in loc.items() if value.shape[-2:] == (3, WIDTH) and "loc" in name)
    q = torch.distributions.Normal(mean, torch.full_like(mean, 0.5))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 2.0)).sum() / 50
    torch.testing.assert_close(kl, expected)
    chunks = [predict(model, guide, batch, num_samples=6, chunk_size=n) for n in (6, 4, 1)]
    for other in chunks[1:]:
        torch.testing.assert_close(other.mean, chunks[0].mean)
    assert chunks[0].epistemic.mean() > 0.01
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert same(predict(model, guide, batch), predict(again, guide_again, batch))


def test_what_a_plain_lora_cannot_hold() -> None:
    random = fill_B(LoRA(bert(), Categorical(3), head=RandomLinear(), num_data=9))
    with refuses(ConfigError, "head", "LoRA", "random"):
        to_lora(random, MeanField(random), bert())
    with refuses(ConfigError, "bayesianise()", "StochasticDown", ["head.weight"]):
        bayesianise(random, MeanField(random), token_batch(targets=torch.tensor([0, 1, 2, 1, 0])))


# frozen stays frozen


# mistakes


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"head": LinearHead("none")}, ("Bernoulli", "LinearHead", "pooling='none'", "Tagging")),
        ({"head": LinearHead(), "pooling": "cls"}, ("pooling='cls'", "LinearHead(pooling='cls')")),
        ({"head": RandomLinear()}, ("'head.weight'", "num_data=")),
    ],
    ids=str,
)
def test_heads_that_cannot_be(options: Any, facts: tuple[object, ...]) -> None:
    backbone = bert()
    with refuses(ConfigError, *facts):
        LoRA(backbone, Bernoulli(), **options)
    LoRA(backbone, Bernoulli())  # the backbone was left as it was


@pytest.mark.parametrize(
    ("head", "facts"),
    [
        (LinearHead, ("the class LinearHead", "bayes_adapters.heads.Head")),
        (nn.Linear(4, 1), ("a Linear", "bayes_adapters.heads.Head")),
    ],
)
def test_what_is_no_head(head: Any, facts: tuple[object, ...]) -> None:
    """The check itself: under the tests' instrumentation the annotations object first."""
    with refuses(ConfigError, *facts):
        require_head(head, Head, None)


def test_one_head_serves_one_model() -> None:
    head = LinearHead()
    LoRA(bert(), Bernoulli(), head=head)
    with refuses(ConfigError, "LinearHead", "head.fresh()"):
        LoRA(bert(), Bernoulli(), head=head)
    assert LoRA(bert(), Bernoulli(), head=head.fresh()).head is not head


def test_structures_that_pool_by_themselves_take_no_head_that_reads() -> None:
    nets = nn.ModuleDict({"text": bert(1)})
    with refuses(ConfigError, "Letters", "ConcatLoRA"):
        ConcatLoRA(nets, Categorical(3), head=Letters([1, 2, 3]))
    with refuses(ConfigError, "head_width=4", "head="):
        ConcatLoRA(nets, Bernoulli(), head=LinearHead(), head_width=4)
    with refuses(ConfigError, "fusion_width=4", "head="):
        FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, head=LinearHead(), fusion_width=4)
    model = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, head=LinearHead())
    assert model.head.weight.shape == (1, WIDTH + CONTEXT)
    assert predict(model, Delta(model), token_batch()).mean.shape == (5,)


def test_a_structure_whose_prior_is_of_masks_takes_no_random_head() -> None:
    with refuses(ConfigError, "RandomLinear"):
        AdapterDropout(bert(), Categorical(3), head=RandomLinear(), num_data=9)


def test_tagging_through_another_head() -> None:
    model = LoRA(bert(), Tagging(3), head=TwoLayerHead(4))
    batch = token_batch()
    found = predict(model, Delta(model), Batch(batch.inputs))
    assert found.mean.shape == (5, 7, 3)
    assert model.pooling is Pooling.NONE


def test_a_plain_module_in_the_heads_place_is_refused_by_name() -> None:
    model = LoRA(bert(), Categorical(3))
    model.head = nn.Linear(WIDTH, 3)  # type: ignore[assignment]
    with refuses(ConfigError, "a Linear", "bayes_adapters.heads.Head"):
        predict(model, Delta(model), token_batch().without_targets())
