"""One model, three priors and guides: what the posterior family changes on the same eight texts.

python -m examples.swap_prior_and_guide
"""

from __future__ import annotations

import pyro.distributions as dist
import torch

from bayes_adapters import AdapterGuide, Batch, Categorical, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import PriorLike, identity_normal
from bayes_adapters.training import fit

PRAISE = ["what a joy", "a lovely day", "the best soup in town", "so kind and quick"]
BLAME = ["how sad", "an awful night", "the soup was cold", "rude and slow"]
ASKED = ["such a kind waiter", "a sad and cold place", "the soup"]
PAIRS: list[tuple[str, PriorLike | None, type[AdapterGuide], str]] = [
    ("N(0, .2²), one posterior over weights", None, MeanField, "global"),
    ("N(I, .2²), one posterior over weights", identity_normal(8), MeanField, "global"),
    ("Laplace(0, .1), a point estimate", dist.Laplace(0.0, 0.1), Delta, "global"),
    ("N(0, .2²), a posterior per token", None, Contextual, "token"),
]
"""What is printed, prior (None is the default), guide, and for what one draw is shared."""


def main(epochs: int = 30) -> list[torch.Tensor]:
    """Train every pair and print what it says about :data:`ASKED`.

    Args:
        epochs: over the eight texts.

    Returns:
        The epistemic part of every pair, nats, each of shape (texts asked,).
    """
    found = []
    for title, prior, family, granularity in PAIRS:
        torch.manual_seed(0)
        backbone, tokenizer = text_backbone()
        tokens = tokenizer([*PRAISE, *BLAME, *ASKED], return_tensors="pt", padding=True)
        train = Batch({k: v[:8] for k, v in tokens.items()}, torch.tensor([1] * 4 + [0] * 4))
        options = {"num_data": 8} if granularity == "global" else {}
        model = StochasticCore(
            backbone,
            Categorical(2),
            targets=["query", "value"],
            rank=8,
            granularity=granularity,
            prior=prior,
            **options,
        )
        guide = family(model)
        fit(model, guide, train, epochs=epochs, progress=False)
        answer = predict(model, guide, Batch({k: v[8:] for k, v in tokens.items()}), num_samples=32)
        print(f"{title}\n    p(praise) / epistemic: ", end="")
        numbers = zip(ASKED, answer.probs[:, 1], answer.epistemic, strict=True)
        print("; ".join(f"{text!r} {p:.2f} / {e:.2f}" for text, p, e in numbers))
        found.append(answer.epistemic)
    return found


if __name__ == "__main__":
    main()
