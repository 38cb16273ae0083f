"""Priors in every form in which they can be given."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.priors import Prior, from_json, identity_normal, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.refusals import refuses

A = Site("core.a.query", Part.CORE, ("a.query",), (3, 3), Granularity.TOKEN)
B = Site("core.b.value", Part.CORE, ("b.value",), (3, 3), Granularity.SEQUENCE)
G = Site("core.global", Part.CORE, ("a.query", "b.value"), (3, 3), Granularity.GLOBAL)
X = torch.randn(3, 3)


def log_prob(prior: Prior, site: Site, value: torch.Tensor = X) -> torch.Tensor:
    core = prior.of(site)
    assert core.event_shape == (3, 3)
    assert core.batch_shape == ((2,) if site is G else ())
    return core.log_prob(value)


FORMS: dict[str, tuple[Any, Any]] = {
    "zero": (zero_normal(), lambda x: torch.distributions.Normal(0.0, 0.2).log_prob(x).sum()),
    "zero_wide": (zero_normal(2.0), lambda x: torch.distributions.Normal(0.0, 2.0).log_prob(x).sum()),
    "identity": (identity_normal(3, 0.3), lambda x: torch.distributions.Normal(torch.eye(3), 0.3).log_prob(x).sum()),
    "student": (dist.StudentT(4.0, 0.0, 0.2), lambda x: torch.distributions.StudentT(4.0, 0.0, 0.2).log_prob(x).sum()),
    "laplace": (dist.Laplace(0.1, 0.2), lambda x: torch.distributions.Laplace(0.1, 0.2).log_prob(x).sum()),
    "event": (
        dist.Normal(torch.zeros(3, 3), 0.5).to_event(2),
        lambda x: torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(),
    ),
    "rows": (
        dist.MultivariateNormal(torch.zeros(3), torch.diag(torch.tensor([0.1, 0.2, 0.3]))),
        lambda x: torch.distributions.Normal(0.0, torch.tensor([0.1, 0.2, 0.3]).sqrt()).log_prob(x).sum(),
    ),
    "rows_precision": (
        dist.MultivariateNormal(torch.zeros(3), precision_matrix=4 * torch.eye(3)),
        lambda x: torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(),
    ),
    "low_rank": (
        dist.LowRankMultivariateNormal(torch.zeros(3), torch.zeros(3, 1), torch.full((3,), 0.25)),
        lambda x: torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(),
    ),
}


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("site", [A, B, G], ids=["token", "sequence", "global"])
def test_density(name: str, site: Site) -> None:
    spec, expected = FORMS[name]
    found = log_prob(Prior(spec, [site]), site)
    torch.testing.assert_close(found, expected(X).expand(found.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("site", [A, G], ids=["token", "global"])
def test_json_round_trip(name: str, site: Site) -> None:
    prior = Prior(FORMS[name][0], [site])
    text = json.dumps(prior.to_json())
    again = Prior(from_json(json.loads(text)), [site])
    torch.testing.assert_close(log_prob(again, site), log_prob(prior, site), rtol=1e-6, atol=1e-6)
    assert json.dumps(again.to_json()) == text


def test_patterns_first_match_wins() -> None:
    prior = Prior({"*.value": zero_normal(1.0), "core.a.*": zero_normal(2.0), "*": zero_normal(3.0)}, [A, B])
    assert prior.of(A).stddev.unique().tolist() == [2.0]
    assert prior.of(B).stddev.unique().tolist() == [1.0]


def test_callable_sees_name_and_shape() -> None:
    seen = {}

    def build(name: str, shape: tuple[int, ...]) -> Any:
        seen[name] = shape
        return dist.Normal(torch.zeros(shape), 0.1)

    prior = Prior(build, [A, G])
    assert seen == {"core.a.query": (3, 3), "core.global": (2, 3, 3)}
    assert prior.of(G).stddev.unique().item() == pytest.approx(0.1)


def test_a_global_prior_may_differ_between_layers() -> None:
    loc = torch.tensor([1.0, 5.0])[:, None, None].expand(2, 3, 3)
    prior = Prior(dist.Normal(loc, 1.0), [G])
    assert prior.of(G).mean[:, 0, 0].tolist() == [1.0, 5.0]


def test_priors_are_buffers_that_never_train_and_are_not_saved() -> None:
    prior = Prior(dist.Normal(torch.tensor(0.0), torch.tensor(0.2)), [A])
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}
    assert not any(b.requires_grad for b in prior.buffers())
    assert all(b.device.type == "meta" for b in prior.to("meta").buffers())


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        (
            {"core.a.qery": zero_normal(), "*": zero_normal()},
            ("'core.a.qery'", "'core.a.query'"),
        ),
        ({"core.a.*": zero_normal()}, ("'core.b.value'", "'*'")),
        (dist.Normal(torch.zeros(4, 4), 1.0), ((4, 4), (3, 3))),
        (dist.MultivariateNormal(torch.zeros(9), torch.eye(9)), ((9,), (3, 3))),
    ],
    ids=["pattern", "uncovered", "shape", "mvn"],
)
def test_errors(spec: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        Prior(spec, [A, B])


def test_a_prior_is_not_trained() -> None:
    with refuses(ConfigError, "scale", "Normal", "'core.a.query'", "scale.detach()"):
        Prior(dist.Normal(0.0, torch.nn.Parameter(torch.tensor(0.2))), [A])
    with refuses(ConfigError, "Normal", "'core.a.query'", "loc.detach()"):
        Prior(dist.Normal(torch.zeros(3, 3, requires_grad=True), 0.2).to_event(2), [A])
    with refuses(ConfigError, "pyro.param", "'core.a.query'"):
        Prior(lambda name, shape: dist.Normal(0.0, pyro.param("tau", torch.tensor(1.0))), [A])


def test_values_that_are_no_distribution() -> None:
    with refuses(ConfigError, "builtins.float"):
        Prior(lambda name, shape: 0.2, [A])
