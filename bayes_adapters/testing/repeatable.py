"""The same seed gives the same numbers, and a prediction takes none from anybody's generator."""

from __future__ import annotations

import torch

from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.predictive import predict
from bayes_adapters.testing.case import Case, seeded
from bayes_adapters.testing.report import CheckError


def check_repeatable(case: Case) -> str:
    """Check that two losses, and two predictions, of one seed are equal to the last bit.

    Returns:
        What was seen.

    Raises:
        CheckError: they differ.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_repeatable(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))
    'Two losses and two predictions of one seed are equal; predict() left the generator alone.'
    """
    model, guide = case.build()
    losses = []
    for _ in range(2):
        with seeded(case.seed + 7), torch.no_grad():
            losses.append(ELBO(model, guide)(case.batch).item())
    if losses[0] != losses[1]:
        raise CheckError(
            f"two losses after torch.manual_seed({case.seed + 7}) are {losses[0]:.7g} and {losses[1]:.7g}.",
            "the same seed gives the same numbers.",
            "the posterior draws from another generator than torch's default one (a torch.Generator of its own, random "
            "or numpy), or a pass changes the guide's state. Return a distribution, and let Pyro draw it.",
        )
    with seeded(case.seed + 7):
        state = torch.get_rng_state()
        found = [predict(model, guide, case.batch, num_samples=3).mean]
        untouched = torch.equal(state, torch.get_rng_state())
    with seeded(case.seed + 7):
        found.append(predict(model, guide, case.batch, num_samples=3).mean)
    if not torch.equal(*found):
        raise CheckError(
            f"two calls of predict(seed=0) differ by {float((found[0] - found[1]).abs().max()):.3g}.",
            "the same seed gives the same numbers.",
            "posterior() changes the guide's parameters or buffers, or draws from a generator of its own.",
        )
    note = "predict() left the generator alone." if untouched else "predict() drew with torch's generator."
    return f"Two losses and two predictions of one seed are equal; {note}"
