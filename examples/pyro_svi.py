"""Plain Pyro: ``SVI`` trains, ``Predictive`` draws, ``poutine`` looks; the library only gives model and guide.

python -m examples.pyro_svi
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.optim import ClippedAdam

from bayes_adapters import Batch, Categorical
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import MeanField
from bayes_adapters.models import StochasticCore

PRAISE = ["what a joy", "a lovely day", "the best soup in town", "so kind and quick"]
BLAME = ["how sad", "an awful night", "the soup was cold", "rude and slow"]
ASKED = ["such a kind waiter", "a sad and cold place", "the soup"]


def main(steps: int = 40) -> tuple[list[float], torch.Tensor]:
    """Train, draw from the posterior predictive, and print both.

    Args:
        steps: of ``SVI``, each over all eight texts.

    Returns:
        The losses, nats per text, and P(praise) of every draw, shape (draws, texts asked).
    """
    pyro.set_rng_seed(0)
    backbone, tokenizer = text_backbone()
    tokens = tokenizer([*PRAISE, *BLAME, *ASKED], return_tensors="pt", padding=True)
    train = Batch({k: v[:8] for k, v in tokens.items()}, torch.tensor([1] * 4 + [0] * 4))
    asked = Batch({k: v[8:] for k, v in tokens.items()})

    # A global core has one KL for all N texts, so the model must know N. Losses are in nats per text.
    model = StochasticCore(backbone, Categorical(2), targets=["query", "value"], granularity="global", num_data=8)
    guide = MeanField(model)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-3}), TraceMeanField_ELBO())
    losses = [svi.step(train) for _ in range(steps)]
    print(f"negative ELBO per text: {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")

    # Predictive samples labels; their share is a probability. A trace of the guide holds the distribution itself.
    labels = Predictive(model, guide=guide, num_samples=50, parallel=False)(asked)["obs"]
    share = labels.reshape(50, -1).float().mean(0)
    draws = []
    for _ in range(20):
        with torch.no_grad():
            sites: Any = poutine.trace(guide).get_trace(asked).nodes
            cores = {site.name: sites[site.name]["value"] for site in model.sites}
            outcome: Any = poutine.trace(poutine.condition(model, data=cores)).get_trace(asked).nodes["obs"]
        draws.append(outcome["fn"].probs[..., 1].flatten())
    spread = torch.stack(draws)
    for text, p, s in zip(ASKED, share, spread.std(0), strict=True):
        print(f"{text:21} p(praise) {p:.2f}, standard deviation over draws {s:.2f}")
    return losses, spread


if __name__ == "__main__":
    main()
