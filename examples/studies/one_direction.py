"""CoLA with one direction only: one encoder listens to the other, which does not listen."""

from __future__ import annotations

from torch import nn

from bayes_adapters import adapted_layers
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.inference.guide import site_key
from bayes_adapters.models import CoLA


def listen_in(encoder: str, model: CoLA, guide: Hypernetwork) -> None:
    """Fix λ at 0, and whatever only it makes count, in every encoder but ``encoder``.

    What is left there is LoRA with one matrix pair; the numbers of both paths are drawn all the same, so that a run
    with one direction starts where the run with both does.
    """
    layers = adapted_layers(model.backbone)
    for site in model.sites:
        if site.layers[0].partition(".")[0] == encoder:
            continue
        paths = [layers[layer].inter[site.source] for layer in site.layers]
        for path in paths:
            nn.init.zeros_(path.gain)  # type: ignore[arg-type]
        for part in (*paths, guide.nets[site_key(site)]):
            part.requires_grad_(False)
