"""Methods that begin with a trained model, so that no pair of a model and a guide is one of them."""

from __future__ import annotations

PROCEDURES: dict[str, str] = {
    "tfb": "it makes one of a trained lora or blob. Train that, then call "
    "bayes_adapters.surgery.training_free.bayesianise(model, guide, anchors) (TFB, arXiv 2412.05723).",
    "laplace": "it makes one of a trained lora. Train that, then call "
    "bayes_adapters.surgery.laplace.laplace(model, guide, data) (Laplace-LoRA, arXiv 2308.13111).",
    "last-layer-laplace": "it makes one of any trained model with a linear head. Train that, then call "
    "bayes_adapters.surgery.last_layer.last_layer_laplace(model, guide, data) (arXiv 2106.14806).",
    "swag": "it gathers the weights of a lora while that is trained: fit(…, on_step=trajectory) with "
    "bayes_adapters.surgery.swag.Trajectory, then trajectory.posterior(model, guide) (arXiv 1902.02476).",
    "ensemble": "it makes one of several trained loras. Train these from several seeds, then call "
    "bayes_adapters.surgery.ensemble.ensemble(members) (arXiv 1612.01474).",
}
"""Names of methods that begin with a trained model → what to call."""
