"""One draw is one function: outputs are a function of the sites' draws, the same for every token and row."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating, predict
from bayes_adapters.sites import Granularity
from bayes_adapters.testing.case import Case, latents, seeded
from bayes_adapters.testing.report import CheckError

_TOLERANCE = 1e-5


def check_one_function(case: Case) -> str:
    """Check that a draw is one function of all tokens and rows.

    Three statements: a pass conditioned on the recorded draws of another pass has its outputs (no noise beside the
    sites); ``predict`` gives rows one by one what it gives them in one batch; and, for weights, in training mode a
    token that stands at two places of one example is mapped alike there.

    Raises:
        CheckError: one of them does not hold.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_one_function(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))
    'Outputs are a function of the draws, of a row alone as in its batch, and alike for tokens that are alike.'
    """
    model, guide = case.build()
    _outputs_follow_from_draws(model, guide, case)
    _rows_stand_alone(model, guide, case)
    alike = _tokens_are_mapped_alike(model, guide, case)
    return "Outputs are a function of the draws, of a row alone as in its batch" + (
        ", and alike for tokens that are alike." if alike else "."
    )


def _outputs_follow_from_draws(model: AdapterModel, guide: AdapterGuide, case: Case) -> None:
    nodes, latent = latents(model, guide, case.batch)
    values = {name: node["value"] for name, node in latent.items() if name in nodes}
    with torch.no_grad(), evaluating(model, guide), seeded(99), poutine.condition(data=values):
        trace = poutine.trace(model).get_trace(case.batch)
    again: Any = trace.nodes["obs"]["fn"]
    targets = nodes["obs"]["value"]
    _same(
        nodes["obs"]["fn"].log_prob(targets),
        again.log_prob(targets),
        "log p(y | draw) of a pass, and of a pass conditioned on its recorded draws,",
        "outputs are a function of the sites' draws, which are what the KL counts.",
        "the guide adds noise that is no site's draw: a hook that perturbs outputs, local reparametrisation in eval "
        "mode (SiteCall.scale), or a torch.randn() in posterior(). Put all noise into the returned distribution.",
    )


def _rows_stand_alone(model: AdapterModel, guide: AdapterGuide, case: Case) -> None:
    batch = case.batch
    try:
        whole = predict(model, guide, batch, num_samples=3, return_samples=True).samples
    except ConfigError:  # no inverse CDF: draws cannot be repeated, so rows cannot be compared
        return
    alone = [predict(model, guide, batch[i : i + 1], num_samples=3, return_samples=True) for i in range(batch.size)]
    assert whole is not None
    _same(
        whole,
        torch.cat([one.samples for one in alone if one.samples is not None], 1),
        "predict() of a batch, and of its rows one by one,",
        "B rows in one batch are answered as one by one, draw for draw.",
        "posterior() looks at other examples of the batch (a mean or a normalisation over dimension B), or mixes up "
        "the dimensions (*S, B, T).",
    )


def _tokens_are_mapped_alike(model: AdapterModel, guide: AdapterGuide, case: Case) -> bool:
    """Whether there were tokens that are alike; in training mode, where local reparametrisation acts."""
    if any(site.granularity is not Granularity.GLOBAL or not site.part.real for site in model.sites):
        return False  # tokens or examples have draws of their own
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = adapted_layers(model.backbone)

    def note(path: str) -> Any:
        return lambda _, args, out: seen.update({path: (args[0].detach(), out.detach())})

    hooks = [layer.register_forward_hook(note(path)) for path, layer in layers.items()]
    try:
        with torch.no_grad(), seeded(case.seed + 5):
            guide.train()
            guide(case.batch)
    finally:
        for hook in hooks:
            hook.remove()
    guide.trace = type(guide.trace)()
    found = False
    for path, (x, out) in seen.items():
        if x.dim() != 3 or x.shape[0] != case.batch.size:
            continue
        alike = (x[:, :, None] - x[:, None]).abs().amax(-1) < 1e-6
        alike &= ~torch.eye(x.shape[1], dtype=torch.bool)
        if case.batch.token_mask is not None and case.batch.token_mask.shape == x.shape[:2]:
            alike &= case.batch.token_mask[:, :, None] & case.batch.token_mask[:, None]
        row, first, second = alike.nonzero(as_tuple=True)
        if not len(row):
            continue
        found = True
        _same(
            out[row, first],
            out[row, second],
            f"{path} in training mode: outputs of equal tokens of one example",
            "one draw of a weight is one function of all tokens of an example, in training as in prediction.",
            "noise is drawn per token (local reparametrisation over tokens). That is another model: draw the noise of "
            "an example once, in the space of the weights or of the ranks.",
        )
    return found


def _same(a: Tensor, b: Tensor, what: str, right: str, cause: str) -> None:
    gap = float((a - b).abs().max())
    if not gap <= _TOLERANCE * (1.0 + float(b.abs().max())):
        raise CheckError(f"{what} differ by {gap:.3g}.", right, cause)
