"""A trained model and its guide once more, or with another head."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from bayes_adapters import priors, registry
from bayes_adapters.adapters.installation import remove
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.devices import generators_kept
from bayes_adapters.files._adapter import own_tensors
from bayes_adapters.heads import Head
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._shared_backbone import shared_copy


@torch.no_grad()
def rebuilt(
    model: AdapterModel, guide: AdapterGuide, *, head: Head | None = None, num_data: int | None = None
) -> tuple[AdapterModel, AdapterGuide]:
    """Return model and guide of the same classes, options and tensors, in eval mode; with ``head`` in the head's place.

    The backbone is a copy that shares the memory of the frozen weights.
    """
    options = dict(model.config())
    options["targets"] = Targets("|".join(re.escape(path) for path in model.layers)) if model.layers else None
    if head is not None:
        options.pop("pooling", None)
        options |= {"head": head, "num_data": num_data}
    elif not model.own_head:
        options["head"] = model.head.fresh()
    if model.sites:
        options["prior"] = priors.from_json(model.prior.to_json(registry.find), registry.find)
    backbone = remove(shared_copy(model.backbone))
    make_model: Any = type(model)
    make_guide: Any = type(guide)
    with generators_kept(backbone):  # initial values are drawn and then overwritten
        new = make_model(backbone, copy.deepcopy(model.likelihood), **options)
        new_guide = make_guide(new, **guide.config())
    new_guide.posterior_temperature = guide.posterior_temperature
    trained = own_tensors(model, guide)
    for name, slot in own_tensors(new, new_guide).items():
        if name in trained and (head is None or not name.startswith("model.head.")):
            slot.data = trained[name].detach().clone()
            if isinstance(slot, nn.Parameter):
                slot.requires_grad_(trained[name].requires_grad)
    return new.eval(), new_guide.eval()
