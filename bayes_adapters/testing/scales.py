"""The two scales: one KL per data set for weights, one per example for local latents, and none for padding.

Every statement here is exact, for the noise of an example belongs to its number: see
:func:`bayes_adapters.testing.case.terms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.divergence import SAME
from bayes_adapters.inference.elbo import ElboTerms
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.joint import JOINT, JointGuide, joint_kl
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood, Tasks
from bayes_adapters.sites import SITE
from bayes_adapters.testing.case import Case, repeated_draws, terms
from bayes_adapters.testing.report import CheckError, NotApplicableError

_TOLERANCE = 2e-4


def check_padding(case: Case) -> str:
    """Check that padding counts nowhere: three tokens and two masked frames more leave both parts of the loss.

    Raises:
        CheckError: they change.
        NotApplicableError: the batch has neither an ``attention_mask`` of shape (B, T) nor a context.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_padding(Case(guides.MeanField, standard_models()["core, token"], standard_batch()))[:41]
    'Three more tokens of padding and two more'
    """
    model, guide = case.build()
    padded = _padded(case.batch, model)
    before, after = terms(model, guide, case.batch), terms(model, guide, padded)
    _equal(
        "the KL",
        before.kl,
        after.kl,
        "with padding appended",
        "padding has no draw and no KL.",
        "the distribution's mask is taken off, or posterior() averages over tokens or frames without call.token_mask "
        "or Frames.mask.",
    )
    _equal(
        "the negative log-likelihood",
        before.nll,
        after.nll,
        "with padding appended",
        "padding changes no output.",
        "posterior() averages or attends over tokens or frames without call.token_mask or Frames.mask.",
    )
    return "Three more tokens of padding and two more masked frames change neither part of the loss."


def check_scale(case: Case) -> str:
    """Check that the loss counts KL(q ‖ p) once per data set, for weights, and once per example, for local latents.

    The KL of the loss is recomputed from the recorded distributions: divided by N for a global site; for a local one
    summed over real tokens and divided by B. The likelihood's part likewise. At N and at 10 N.

    Raises:
        CheckError: another factor was found; the message says which.
        NotApplicableError: the prior has hyper-parameters, or a draw cannot be repeated.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_scale(Case(guides.MeanField, standard_models()["core, token"], standard_batch()))[:33]
    'The KL is 1 time that of the site'
    """
    model, guide = case.build()
    if guide.hyper is not None or guide.head_posterior is not None:
        raise NotApplicableError("The KLs of hyper-parameters and of a head's own weights are not recomputed here.")
    kept, seen = model.num_data, []
    try:
        for size in [None] if kept is None else [kept, 10 * kept]:
            model.num_data = size
            found = terms(model, guide, case.batch)
            kl = float(found.kl.detach())
            right, nll = _recomputed(model, guide, case.batch)
            seen.append(f"{kl:.5g} nats per datum at N = {model.data_size(case.batch)}")
            factor = kl / float(right) if right else float(kl == 0)
            if abs(factor - 1) > 1e-3 and abs(kl - float(right)) > 1e-6:
                share = model.data_size(case.batch) / case.batch.size
                per_batch = abs(factor / share - 1) < 1e-3
                raise CheckError(
                    f"the KL of the loss is {kl:.6g} nats per datum, {factor:.4g} times that of the sites "
                    f"({float(right):.6g}), with B = {case.batch.size} of N = {model.data_size(case.batch)}.",
                    "a global site counts 1/N per datum, a local one 1/B per example, over its real tokens.",
                    "the KL is counted once per batch instead of once per data set: the factor is N / B."
                    if per_batch
                    else "the guide changes a sample statement's scale or mask (msg['scale'], poutine.scale), or the "
                    "site's granularity is not what the draw is.",
                )
            _equal(
                "the negative log-likelihood",
                found.nll,
                nll,
                "of the loss, and of the recorded outputs",
                "the likelihood of an example counts once.",
                "the guide changes the scale or the mask of the site 'obs'.",
            )
    finally:
        model.num_data = kept
    return f"The KL is 1 time that of the sites: {', '.join(seen)}."


def check_cuts(case: Case) -> str:
    """Check that the loss per datum does not depend on how the data set is cut, nor on order, copies and particles.

    Pieces of a batch, weighted by their sizes, have its loss and (accumulated) its gradient; examples in reverse order,
    and each example twice, have its loss; four particles have the mean of two and two.

    Raises:
        CheckError: one of them differs.
        NotApplicableError: the batch has one example.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_cuts(Case(guides.MeanField, standard_models()["core, token"], standard_batch()))[:33]
    'Pieces of 2 and 3, their gradient'
    """
    model, guide = case.build()
    batch = case.batch
    if batch.size < 2:
        raise NotApplicableError("A batch of one example cannot be cut.")
    if model.num_data is None and any(site.granularity == "global" for site in model.sites):
        raise NotApplicableError("num_data is None, so N is the size of each batch, and cuts are other data sets.")
    cut = max(1, batch.size * 2 // 5)
    first, second = batch[:cut], batch[cut:]
    parameters = [p for p in [*guide.parameters(), *model.trainable_parameters().values()] if p.requires_grad]

    def run(part: Batch, samples: tuple[int, ...] = (0, 1)) -> tuple[ElboTerms, list[Tensor]]:
        found = terms(model, guide, part, samples)
        if not found.loss.requires_grad:
            return found, []
        slopes = torch.autograd.grad(found.loss, parameters, allow_unused=True)
        return found, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]

    whole, slopes = run(batch)
    pieces = [(run(part), part.size / batch.size) for part in (first, second)]
    weighted = {name: sum(w * getattr(found, name) for (found, _), w in pieces) for name in ("kl", "nll")}
    again = terms(model, guide, batch[torch.arange(batch.size - 1, -1, -1)])
    twice = terms(model, guide, batch[torch.arange(batch.size).repeat(2)])
    halves = [terms(model, guide, batch, samples) for samples in ((0, 1), (2, 3))]
    four = terms(model, guide, batch, (0, 1, 2, 3))
    several = {name: sum(getattr(half, name) for half in halves) / 2 for name in ("kl", "nll")}
    alike = "posterior() looks at other examples of the batch, or at their number or order"
    for what, found, right, cause in (
        (f"of pieces of {first.size} and {second.size}, weighted,", weighted, whole, "a scale holds the batch's size"),
        ("of the examples in reverse order", vars(again), whole, alike),
        ("of each example twice", vars(twice), whole, alike),
        ("of four particles, and of two and two,", vars(four), several, "a scale holds the number of particles"),
    ):
        right = right if isinstance(right, dict) else vars(right)
        for name in ("kl", "nll"):
            _equal(
                f"the {name}", right[name], found[name], what, "the loss per datum is that of the data.", f"{cause}."
            )
    for p, slope, one, two in zip(parameters, slopes, pieces[0][0][1], pieces[1][0][1], strict=False):
        summed = pieces[0][1] * one + pieces[1][1] * two
        if float((summed - slope).abs().max()) > 1e-3 * float(slope.abs().max()) + 1e-5:
            raise CheckError(
                f"the gradient accumulated over pieces differs by {float((summed - slope).abs().max()):.3g} for a "
                f"parameter of shape {tuple(p.shape)}.",
                "the weighted sum of the pieces' gradients is that of the whole.",
                "a backward pass keeps something between batches, or normalises by the batch.",
            )
    return f"Pieces of {first.size} and {second.size}, their gradients, other orders, copies and particles: all agree."


def _equal(what: str, a: Tensor, b: Tensor, when: str, right: str, cause: str) -> None:
    one, two = float(a.detach()), float(b.detach())
    if not abs(one - two) <= _TOLERANCE * max(abs(one), abs(two)) + 1e-5:
        raise CheckError(f"{what} {when} is {two:.6g} for {one:.6g}.", right, cause)


def _recomputed(model: AdapterModel, guide: AdapterGuide, batch: Batch) -> tuple[Tensor, Tensor]:
    """KL and negative log-likelihood per datum, from the distributions that a pass recorded; two particles."""
    try:
        with torch.no_grad(), repeated_draws(model, guide, batch), pyro.plate("particles", 2, dim=-2):
            guide(batch)
    except ConfigError as error:
        raise NotApplicableError(f"No draw of this posterior can be repeated: {error}") from None
    model_trace, guide_trace = guide.get_traces()
    guide.trace = type(guide.trace)()
    with torch.no_grad():
        return _counted(model, guide, batch, model_trace.nodes, guide_trace.nodes)


def _counted(model: AdapterModel, guide: AdapterGuide, batch: Batch, nodes: Any, latent: Any) -> tuple[Tensor, Tensor]:
    """Count each site's KL as its granularity says, whatever scales and masks the statements carry."""
    total = torch.zeros(())
    joined = guide.layout if isinstance(guide, JointGuide) and JOINT in latent else {}
    for name, node in latent.items():
        if node["type"] != "sample" or node["is_observed"] or name in joined or node["infer"].get(SAME):
            continue
        if name == JOINT:
            each = joint_kl(node, {n: nodes[n] for n in joined if n in latent})
            total = total + each.mean() / model.data_size(batch)
            continue
        call = node["infer"][SITE]
        q, p = base_distribution(node["fn"]), base_distribution(nodes[name]["fn"])
        try:
            each = kl_divergence(q, p)
        except NotImplementedError:
            each = q.log_prob(node["value"]) - p.log_prob(node["value"])
        each = each.expand(node["fn"].shape()).float()
        if call.feature is None:
            total = total + each.sum() / 2 / model.data_size(batch)
        else:
            event = len(call.site.event)
            mask = torch.ones(()) if call.token_mask is None else call.token_mask.float()
            total = total + (each.sum(tuple(range(-event, 0))) * mask).sum() / 2 / batch.size
    density = nodes["obs"]["fn"].log_prob(nodes["obs"]["value"])
    return total, -density.sum() / 2 / batch.size


def _padded(batch: Batch, model: AdapterModel) -> Batch:
    inputs, context, targets = dict(batch.inputs), {}, batch.targets
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is not None and mask is not None and mask.shape == ids.shape:
        inputs["input_ids"] = torch.cat([ids, ids[:, :1].repeat(1, 3)], 1)
        inputs["attention_mask"] = torch.cat([mask, mask.new_zeros(batch.size, 3)], 1)
        likelihood = model.likelihood
        if isinstance(likelihood, Tasks) and isinstance(targets, Mapping):
            targets = {name: _labels(value, likelihood.each[name]) for name, value in targets.items()}
        elif isinstance(targets, Tensor):
            targets = _labels(targets, likelihood)
    elif not batch.context:
        raise NotApplicableError("The batch has neither input_ids with an attention_mask nor a context to pad.")
    for name, frames in batch.context.items():
        rest = frames.values.new_full((batch.size, 2, frames.values.shape[-1]), 30.0)
        none = frames.mask.new_zeros(batch.size, 2)
        context[name] = Frames(torch.cat([frames.values, rest], 1), torch.cat([frames.mask, none], 1))
    return replace(batch, inputs=inputs, context=context, targets=targets)


def _labels(targets: Tensor, likelihood: Likelihood) -> Tensor:
    """Where there is one target per token, those of three more tokens have no label."""
    if not likelihood.per_token:
        return targets
    return torch.cat([targets, targets.new_full((len(targets), 3), -100)], 1)
