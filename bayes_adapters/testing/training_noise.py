"""Training draws what prediction draws: the expected loss is the same in both modes of the guide."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.testing.case import Case, seeded
from bayes_adapters.testing.report import CheckError, NotApplicableError

_PARTICLES, _REPEATS, _SHARPER = 100, 6, 5.0


def check_training_noise(case: Case) -> str:
    """Check that the expected loss in training mode is that of draws from the posterior, as prediction makes them.

    Local reparametrisation and flipout draw other noise in training, to lower the variance of the gradient. The
    marginal distribution of what one example sees must remain: noise of too many ranks, or per token, is another loss.
    The head's parameters are five times as large here, so that it shows. 600 draws in each mode; the difference must
    lie within 4.5 standard errors.

    Raises:
        CheckError: the expected losses differ.
        NotApplicableError: both modes draw the same numbers.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> case = Case(lambda m: guides.RankWise(m, local_reparametrisation=True, init_log_variance=-2.0),
    ...     standard_models()["A, global"], standard_batch())
    >>> check_training_noise(case)[:48]
    'The expected loss is that of draws in both modes'
    """
    model, guide = case.build()
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(_SHARPER)  # outputs that differ little have losses that differ less
    elbo = ELBO(model, guide, num_particles=_PARTICLES)

    def losses(training: bool, seed: int, repeats: int) -> Tensor:
        guide.train(training)
        for layer in adapted_layers(model.backbone).values():
            layer.training = training  # flipout's signs; the dropout of the backbone stays as it is
        with seeded(seed), torch.no_grad():
            return torch.stack([elbo.terms(case.batch).nll for _ in range(repeats)])

    if torch.equal(losses(True, 1, 1), losses(False, 1, 1)):
        raise NotApplicableError("Training and prediction draw the same numbers.")
    drawn, used = losses(False, 1, _REPEATS), losses(True, 2, _REPEATS)
    error = float((drawn.var() / _REPEATS + used.var() / _REPEATS).sqrt()) + 1e-7
    # With six means in each mode the error itself is uncertain; the larger of the two stands for both.
    error = max(error, float(torch.stack([drawn.std(), used.std()]).max()) * (2.0 / _REPEATS) ** 0.5)
    off = abs(float(drawn.mean() - used.mean())) / error
    if off > 4.5:
        raise CheckError(
            f"the expected negative log-likelihood is {float(used.mean()):.4f} in training mode and "
            f"{float(drawn.mean()):.4f} with draws of the posterior, {off:.1f} standard errors apart.",
            "training minimises the loss of the posterior that prediction draws from.",
            "local reparametrisation draws noise of another rank than the weights have (of A it has rank r: draw "
            "z = A x, then B z), or per token where a weight is shared by all tokens.",
        )
    return f"The expected loss is that of draws in both modes: {off:.1f} standard errors apart."
