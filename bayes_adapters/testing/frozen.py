"""Frozen stays frozen: nothing of the backbone moves, no flag or mode changes, nothing is kept elsewhere."""

from __future__ import annotations

import pyro
import torch

from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.predictive import predict
from bayes_adapters.testing.case import Case, seeded
from bayes_adapters.testing.report import CheckError


def check_frozen(case: Case) -> str:
    """Check what a guide must leave alone, over its construction, two steps of training and a prediction.

    The tensors that are frozen and the buffers of the backbone keep their values and flags; modules keep their modes;
    Pyro's parameter store stays as it was; the guide does not own the model. A guide may freeze more (TFB does).

    Raises:
        CheckError: something changed; the message names it.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_frozen(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))[-32:]
    'and all modes, are as they were.'
    """
    model = case.model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    buffers = dict(model.backbone.named_buffers())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in frozen}
    before |= {f"backbone.{name}": b.clone() for name, b in buffers.items()}
    stored = set(pyro.get_param_store().keys())
    modes = {name: module.training for name, module in model.named_modules()}
    guide = case.guide(model)
    _require_frozen(model, frozen, "its construction")
    owned = {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}
    if owned or any("backbone" in key for key in guide.state_dict()):
        raise CheckError(
            f"{type(guide).__name__} has {len(owned)} parameters of the model among its own.",
            "a guide's state holds its own parameters only.",
            "the model, or a module of it, is an attribute of the guide and so a submodule; self.model is there "
            "already and is none.",
        )
    elbo = ELBO(model, guide)
    trained = [p for p in elbo.parameters() if p.requires_grad]
    with seeded(case.seed + 3):
        optimiser = torch.optim.SGD(trained, lr=0.1) if trained else None
        for _ in range(2):
            loss = elbo(case.batch)
            if optimiser is not None and loss.requires_grad:
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)  # a sum over pixels has slopes in the thousands
                optimiser.step()
    _require_frozen(model, frozen, "a step")
    predict(model, guide, case.batch, num_samples=2)
    _require_frozen(model, frozen, "a prediction")
    now = dict(model.named_parameters()) | {f"backbone.{n}": b for n, b in model.backbone.named_buffers()}
    moved = [name for name, value in before.items() if name not in now or not torch.equal(now[name], value)]
    if moved:
        raise CheckError(
            f"{moved[0]!r} and {len(moved) - 1} more frozen tensors changed their values.",
            "the backbone is the same before and after.",
            "the guide writes into the model, or runs it in training mode where buffers are running statistics.",
        )
    changed = [name for name, module in model.named_modules() if modes.get(name) != module.training]
    if changed:
        raise CheckError(
            f"{changed[0] or 'the model'!r} is in another mode than before.",
            "a pass leaves train and eval as it found them.",
            "the guide calls .train() or .eval() on the model; use bayes_adapters.evaluating(model).",
        )
    if extra := set(pyro.get_param_store().keys()) - stored:
        raise CheckError(
            f"Pyro's parameter store holds {min(extra)!r}.",
            "a guide's parameters are those of a module; the global store stays empty.",
            "pyro.param or pyro.module in the guide's code; make an nn.Parameter in __init__.",
        )
    return f"{len(before)} frozen tensors and buffers of the backbone, and all modes, are as they were."


def _require_frozen(model: torch.nn.Module, frozen: set[str], after: str) -> None:
    thawed = sorted(name for name, p in model.named_parameters() if name in frozen and p.requires_grad)
    if thawed:
        raise CheckError(
            f"{len(thawed)} frozen tensors require gradients after {after}, {thawed[0]!r} among them.",
            "the backbone stays frozen; adapters, head, likelihood and guide are trained.",
            "the guide calls requires_grad_(True) or train() on the whole model, or pyro.nn.module.to_pyro_module_.",
        )
