"""The training steps that are compared, each on a backbone of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import ELBO, Batch, KLWeight
from examples.benchmarks.handwritten import HandWritten, disagreement
from examples.benchmarks.measure import Variant
from examples.benchmarks.workload import ALPHA, KL_WEIGHT, METHODS, RANK, TARGETS, Backbones, build

ADAMW: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01}
TOLERANCE = 1e-5
"""Largest relative difference of the hand-written loss and gradients from the library's."""
PEFT = "PEFT LoRA"
OURS = "LoRA + Delta"


def hand(method: str) -> str:
    """The name of ``method``'s hand-written step."""
    return f"{method}: hand-written"


def elbo(method: str) -> str:
    """The name of ``method``'s step with the library's ELBO."""
    return f"{method}: ELBO + torch AdamW"


def svi(method: str) -> str:
    """The name of ``method``'s step with Pyro's own SVI."""
    return f"{method}: stock SVI + pyro AdamW"


def names() -> list[str]:
    """Every variant that can run here; PEFT's only where PEFT is installed."""
    peft = [PEFT] if importlib.util.find_spec("peft") else []
    return [*peft, OURS, *(name(m) for m in METHODS for name in (hand, elbo, svi))]


def training_step(name: str, backbones: Callable[[], nn.Module], batch: Batch) -> Variant:
    """Build the step ``name`` on one backbone: gradients to zero, loss, backward, optimiser; it returns the loss."""
    if name == PEFT:
        module = PeftLoRA(backbones()).to(batch.inputs["input_ids"].device)
        return _torch_step(module, lambda: module(batch))
    width = batch.context["audio"].values.shape[-1]
    method = "lora" if name == OURS else name.split(":")[0]
    backbone = backbones().to(batch.inputs["input_ids"].device)
    model, guide = build(method, backbone, width)
    guide.to(batch.inputs["input_ids"].device)
    if name == hand(method):
        written = HandWritten(model, guide, backbone)
        return _torch_step(written, lambda: written(batch, KL_WEIGHT))
    if name == svi(method):
        return _svi_step(
            SVI(model, guide, PyroOptim(torch.optim.AdamW, dict(ADAMW)), TraceMeanField_ELBO(max_plate_nesting=1)),
            batch,
        )
    loss = ELBO(model, guide, kl_weight=KL_WEIGHT)
    return _torch_step(loss, lambda: loss(batch))


def check_hand_written(method: str, backbones: Backbones, batch: Batch, seed: int = 0) -> tuple[float, float]:
    """Compare the hand-written loss and every gradient with the library's, both with the same noise.

    Returns:
        The largest relative difference of the losses and of the gradients.

    Raises:
        RuntimeError: one is above :data:`TOLERANCE`; timing two different computations would say nothing.
    """
    device = batch.inputs["input_ids"].device
    model, guide = build(method, backbones().to(device), batch.context["audio"].values.shape[-1])
    guide.to(device)
    written = HandWritten(model, guide, backbones().to(device))
    torch.manual_seed(seed)
    ours = ELBO(model, guide, kl_weight=KL_WEIGHT)(batch)
    torch.manual_seed(seed)
    theirs = written(batch, KL_WEIGHT)
    ours.backward()
    theirs.backward()
    loss = disagreement([theirs.detach()], [ours.detach()])
    gradient = disagreement(written.gradients(), written.matching_gradients(model, guide))
    if not max(loss, gradient) <= TOLERANCE:
        raise RuntimeError(
            f"{method}: the hand-written loss differs from the library's by {loss:.1e}, a gradient by {gradient:.1e} "
            f"(allowed {TOLERANCE:g}, relative). They no longer compute the same, so their times cannot be compared."
        )
    return loss, gradient


class PeftLoRA(nn.Module):
    """PEFT's LoRA on ``backbone``, a linear head on the mean of real tokens, and binary cross-entropy."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0)
        torch.manual_seed(0)
        self.head = nn.Linear(backbone.config.hidden_size, 1)
        self.backbone = get_peft_model(backbone, settings)

    def logits(self, batch: Batch) -> Tensor:
        """Shape (B,)."""
        weight = batch.inputs["attention_mask"][..., None].float()
        hidden = self.backbone(**batch.inputs).last_hidden_state
        return self.head((hidden * weight).sum(1) / weight.sum(1))[:, 0]

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, nats per datum."""
        assert isinstance(batch.targets, Tensor)
        return F.binary_cross_entropy_with_logits(self.logits(batch), batch.targets)


def _torch_step(module: nn.Module, loss_of: Callable[[], Tensor]) -> Variant:
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    module.train()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Variant(step)


def _svi_step(inference: SVI, batch: Batch) -> Variant:
    inference.model.train()
    state: Any = {"params": {}, "constraints": {}}

    @contextmanager
    def own_store() -> Iterator[None]:
        with pyro.get_param_store().scope(state):
            yield

    def step() -> float:
        with KLWeight(KL_WEIGHT):
            return inference.step(batch) / inference.model.data_size(batch)  # Pyro's loss is that of all N examples

    return Variant(step, own_store)
