"""The symmetric InfoNCE against CLIP's loss by hand, its groups, its scale, and what it refuses."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch.nn import functional as F

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, RankWise
from bayes_adapters.heads import BayesianTowers, GaussianProcessHead, LinearHead, TwoTowers
from bayes_adapters.likelihoods import Candidates, Contrastive, Tasks
from bayes_adapters.models import CoLA, ConcatLoRA, LoRA, StochasticDown, StochasticFactors, Wander
from tests.helpers import bert
from tests.refusals import refuses
from tests.retrieval.parts import pairs, side, towers
from tests.text_and_audio import encoders

OUTPUTS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))  # two draws of six pairs, d = 4


def clip_loss(outputs: torch.Tensor, scale: float) -> torch.Tensor:
    u, v = (F.normalize(part, dim=-1) for part in outputs.split(4, -1))
    logits, labels = scale * u @ v.T, torch.arange(len(u))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def test_of_different_groups_it_is_clips_loss_draw_by_draw() -> None:
    likelihood = Contrastive(4, scale=5.0)
    both = likelihood.distribution(OUTPUTS).log_prob(torch.tensor([9, 3, 5, 0, 7, 1]))
    for found, outputs in zip(both, OUTPUTS, strict=True):
        torch.testing.assert_close(-found.mean(), clip_loss(outputs, 5.0))


def test_its_gradient_is_that_of_differences() -> None:
    likelihood = Contrastive(4, scale=5.0).double()
    groups = torch.tensor([0, 1, 1, 2, 3, 0])

    def loss(outputs: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        u, v = (F.normalize(part, dim=-1) for part in outputs.split(4, -1))
        return type(likelihood.distribution(OUTPUTS))(u, v, log_scale.exp()).log_prob(groups)

    inputs = (OUTPUTS[0].double().requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(loss, inputs)


def test_rows_of_one_group_are_right_partners() -> None:
    """By hand, over all groups the probabilities sum to one, and a duplicate is never a wrong candidate."""
    fn = Contrastive(4, scale=5.0).distribution(OUTPUTS[0])
    groups = torch.tensor([0, 1, 1, 2, 3, 0])
    rows, columns = fn.scores.softmax(1), fn.scores.softmax(0)
    for b in range(6):
        same = groups == groups[b]
        expected = 0.5 * (rows[b, same].sum().log() + columns[same, b].sum().log())
        torch.testing.assert_close(fn.log_prob(groups)[b], expected)
    twice = torch.cat([OUTPUTS[0], OUTPUTS[0, :1]])
    fn = Contrastive(4, scale=5.0).distribution(twice)
    apart, together = fn.log_prob(torch.arange(7)), fn.log_prob(torch.tensor([0, 1, 2, 3, 4, 5, 0]))
    assert float((together - apart)[0].detach()) == pytest.approx(math.log(2), abs=1e-5)  # its copy no longer halves it


def test_the_scale_stays_below_100_and_can_come_back() -> None:
    likelihood = Contrastive(4)
    assert likelihood.scale.item() == pytest.approx(1 / 0.07)
    likelihood.log_scale.data.fill_(math.log(150.0))
    assert likelihood.scale.item() == pytest.approx(100.0)
    for sign, expected in ((1.0, 100.0), (-1.0, 0.0)):  # descent on +scale lowers it, on −scale it would rise
        likelihood.log_scale.grad = None
        (sign * likelihood.scale).backward()
        assert float(likelihood.log_scale.grad) == pytest.approx(expected)


def test_draws_that_are_folded_are_separate_passes() -> None:
    """Candidates never mix draws: three draws in one pass, and each in a pass of its own."""
    model, data = towers(), pairs()
    (site,) = model.sites
    draws = torch.randn(3, *site.shape, generator=torch.Generator().manual_seed(3))
    folded = predict(model, {site.name: draws}, data, chunk_size=3, return_samples=True)
    alone = [predict(model, {site.name: own[None]}, data) for own in draws]
    assert folded.samples is not None
    torch.testing.assert_close(folded.samples, torch.stack([one.mean for one in alone]), rtol=1e-4, atol=1e-6)
    densities = torch.stack([one.log_density for one in alone if one.log_density is not None])
    assert folded.log_density is not None
    torch.testing.assert_close(folded.log_density, densities.logsumexp(0) - math.log(3), rtol=1e-4, atol=1e-5)
    assert float(densities.std(0).min()) > 1e-3


def test_a_side_sees_its_own_inputs_only() -> None:
    model, data, other = towers().eval(), pairs(), pairs(seed=5)
    mixed = {key: (data if key.startswith("text.") else other).inputs[key] for key in data.inputs}
    with torch.no_grad():
        held = {site.name: model.prior.of(site).sample() for site in model.sites}
        run = pyro.poutine.condition(model, held)
        ours, theirs = run(data), run(type(data)(mixed))
        alone = run(side(data, "text").without_targets())
    assert torch.equal(ours[..., :3], theirs[..., :3])
    assert not torch.allclose(ours[..., 3:], theirs[..., 3:])
    torch.testing.assert_close(ours[..., :3], alone[..., :3])


@pytest.mark.parametrize(
    ("groups", "facts"),
    [
        (torch.arange(4.0), ("Contrastive", "int64", "torch.float32")),
        (torch.ones(4, dtype=torch.bool), ("int64", "torch.bool")),
        (torch.zeros(4, 2, dtype=torch.long), ("(4, 2)", "torch.arange(B)")),
        (torch.tensor([3]), ("1", "drop_last=True", "similarities()")),
        (torch.full((4,), 7), ("4", "7", "duplicates")),
    ],
)
def test_targets_that_are_no_groups(groups: torch.Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        Contrastive(4).check(groups)


def test_pairs_that_lack_a_side() -> None:
    model, data = ConcatLoRA(encoders(1, 1), Contrastive(3), rank=2), pairs(4)
    present = torch.tensor([True, False, True, True])
    with refuses(DataError, "1 of 4", "audio", "[1]"):
        model(type(data)({**data.inputs, "audio.present": present}, data.targets))
    with refuses(DataError, "4 of 4", "audio"):
        model(side(data, "text"))


def test_duplicates_that_are_declared_to_differ() -> None:
    """Of one text with two recordings each would be a wrong candidate of the other."""
    model, data = ConcatLoRA(encoders(1, 1), Contrastive(3), rank=2), pairs(5)
    twice = {key: value.clone() for key, value in data.inputs.items()}
    for key in ("text.input_ids", "text.attention_mask"):
        twice[key][3] = twice[key][0]
    with refuses(DataError, "[0, 3]", "text", "[0, 3]", "torch.unique"):
        model(type(data)(twice, data.targets))
    model(type(data)(twice, torch.tensor([0, 1, 2, 0, 4])))
    model(type(data)(twice))  # without targets nothing is wrong


def test_what_would_mix_the_sides_or_the_draws() -> None:
    nets, dim = encoders(1, 1), Contrastive(3)
    with refuses(ConfigError, "Contrastive", "CoLA", "ConcatCore", "Candidates"):
        CoLA(nets, dim, rank=2)
    with refuses(ConfigError, "Wander", "Candidates"):
        Wander(nets, dim, num_data=3, lengths={"text": 2, "audio": 2})
    with refuses(ConfigError, "LinearHead", "TwoTowers"):
        ConcatLoRA(nets, dim, head=LinearHead())
    with refuses(ConfigError, "BayesianTowers", "Bernoulli", "Contrastive(dim)"):
        ConcatLoRA(nets, Bernoulli(), head=BayesianTowers())
    with refuses(ConfigError, "'tex'", "'text'"):
        ConcatLoRA(nets, dim, head=TwoTowers(["tex"]))
    with refuses(ConfigError, "['text', 'audio']", "all"):
        ConcatLoRA(nets, dim, head=TwoTowers(["text", "audio"]))
    with refuses(ConfigError, "LoRA", "ConcatCore"):
        LoRA(bert(1), dim, head=TwoTowers())
    with refuses(ConfigError, "flipout=True", "Candidates"):
        StochasticDown(bert(1), Candidates(), num_data=3)
    model = StochasticFactors(bert(1), Candidates(), num_data=3, rank=2)
    with refuses(ConfigError, "local_reparametrisation=True", "Candidates"):
        RankWise(model, local_reparametrisation=True)
    pytest.importorskip("gpytorch")
    with refuses(ConfigError, "Candidates", "GaussianProcessHead", "BayesianLinear()"):
        LoRA(bert(1), Candidates(), rank=2, head=GaussianProcessHead(), num_data=3)
    with refuses(ConfigError, "'match'", "Contrastive", "Tasks"):
        Tasks({"match": dim})
    for scale in (0.0, 101.0, True):
        with refuses(ConfigError, "scale", repr(scale)):
            Contrastive(3, scale=scale)


def test_three_encoders_need_a_first_side() -> None:
    nets = encoders(1, 1)
    nets["image"] = bert(1)
    with refuses(ConfigError, "3", "first=['text']"):
        ConcatLoRA(nets, Contrastive(3))
    head = TwoTowers(["audio"])
    model = ConcatLoRA(nets, Contrastive(3), rank=2, head=head)
    assert head.sides == (["audio"], ["text", "image"])
    assert [tuple(weight.shape) for weight in model.head.parameters()] == [(3, 16), (3, 32)]
    inputs = pairs(4).inputs | {"image.input_ids": torch.arange(12).reshape(4, 3)}
    inputs |= {"image.present": torch.tensor([True, False, True, True])}  # its text alone is the second side then
    outputs = model(Batch(inputs, torch.arange(4)))
    assert outputs.shape == (4, 6)
    assert Delta(model).deterministic
