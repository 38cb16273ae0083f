"""The head of boxes and masks: where its box lies, what a mask sees, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayes_adapters import Categorical
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import BoundingBox, Masks, Tasks
from examples.grounding.heads import GroundingHead
from tests.refusals import refuses

GRID = (2, 4)
TOKENS = 1 + GRID[0] * GRID[1]


def likelihood(scale: str = "coordinate") -> Tasks:
    return Tasks({"mask": Masks(GRID, (16, 32), skip=1, detail=2), "box": BoundingBox(scale)})


def head(scale: str = "coordinate") -> GroundingHead:
    torch.manual_seed(0)
    made = GroundingHead(8, GRID)
    made.prepare(6, likelihood(scale))
    return made


def attend(made: GroundingHead, patch: int) -> None:
    """Make attention depend on the place alone."""
    logits = torch.full((1, TOKENS - 1), -60.0)
    logits[0, patch] = 0.0
    made.attention = lambda z: logits.softmax(-1).expand(len(z), -1)  # type: ignore[method-assign]


@pytest.mark.parametrize(("patch", "place"), [(0, (0.125, 0.25)), (3, (0.875, 0.25)), (6, (0.625, 0.75))])
def test_a_box_starts_in_the_middle_of_what_is_attended(patch: int, place: tuple[float, float]) -> None:
    made = head()
    attend(made, patch)
    found = made(torch.randn(2, TOKENS, 6))[..., 4:].sigmoid()
    expected = torch.tensor([*place, 0.25, 0.25]).expand(2, TOKENS, -1)
    torch.testing.assert_close(found, expected)


def test_even_attention_is_the_middle_of_the_picture() -> None:
    made = head("example")
    made.score.weight.data.zero_()
    found = made(torch.randn(2, TOKENS, 6))[:, 0, 4:]
    torch.testing.assert_close(found[:, :4].sigmoid(), torch.tensor([0.5, 0.5, 0.25, 0.25]).expand(2, -1))
    assert not found[:, 4:].any()  # the scales start at the likelihood's own


def started(made: GroundingHead) -> GroundingHead:
    for layer in made.answers.values():
        torch.nn.init.normal_(layer.weight)  # type: ignore[arg-type, union-attr]
    return made


def test_a_box_knows_where_and_a_mask_what() -> None:
    """Patches in another order have their masks in that order, and a box elsewhere; the first token counts nowhere."""
    made, features = started(head()), torch.randn(3, TOKENS, 6)
    order = torch.tensor([0, 8, 7, 6, 5, 4, 3, 2, 1])
    one, two = made(features), made(features[:, order])
    torch.testing.assert_close(two[:, :, :4], one[:, order, :4])
    assert float((two - one)[:, 0, 4:6].abs().min().detach()) > 1e-4
    torch.testing.assert_close(two[:, 0, 6:], one[:, 0, 6:])  # width and height do not depend on places
    features[:, 0] = 9.0
    again = made(features)
    torch.testing.assert_close(again[:, 1:], one[:, 1:])


def test_the_likelihood_reads_the_box_that_the_head_says() -> None:
    made = started(head())
    outputs = made(torch.randn(3, TOKENS, 6))
    fn = likelihood().distribution(outputs[None])
    torch.testing.assert_close(fn.parts["box"].mean[0], outputs[:, 0, 4:].sigmoid())


def test_it_learns_to_find_what_is_meant() -> None:
    """One patch bears the sign that stands beside all patches; a head without products cannot tell which."""
    made = GroundingHead(16, GRID)
    made.prepare(8, likelihood())
    torch.manual_seed(1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        signs = torch.stack([torch.randperm(TOKENS - 1)[: TOKENS - 1] % 4 for _ in range(count)])
        target = torch.randint(TOKENS - 1, (count,))
        sign = signs.gather(1, target[:, None])
        one_hot = torch.nn.functional.one_hot
        seen = torch.cat([torch.zeros(count, 1, 4), one_hot(signs, 4).float()], 1)
        features = torch.cat([seen, one_hot(sign, 4).float().expand(-1, TOKENS, -1)], -1)
        return features, (signs == sign).float()  # a mask of all patches with the sign

    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    for _ in range(120):
        features, meant = draw(64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(made(features)[:, 1:, 0], meant)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, meant = draw(200)
    assert float(((made(features)[:, 1:, 0] > 0) == meant.bool()).float().mean()) > 0.99


def test_refusals() -> None:
    kinds = Tasks({"kind": Categorical(3), "mask": Masks(GRID, (16, 32))})
    with refuses(ConfigError, "GroundingHead", "Tasks"):
        GroundingHead(8, GRID).prepare(6, kinds)
    with refuses(DataError, TOKENS, TOKENS + 1):
        head()(torch.randn(1, TOKENS + 1, 6))
    with refuses(ConfigError, "hidden", 0):
        GroundingHead(0)
