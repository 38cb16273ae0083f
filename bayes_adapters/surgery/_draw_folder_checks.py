"""What is refused where draws of a posterior are written as plain LoRA folders."""

from __future__ import annotations

import re
from pathlib import Path

from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._file_checks import occupied
from bayes_adapters.heads.bayesian_linear import BayesianLinear
from bayes_adapters.heads.joint_linear import JointLinear
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity

CARD = "README.md"
_DRAWN = (BayesianLinear, JointLinear)
_DRAW = re.compile(r"\.?draw-\d{2,}(-[0-9a-f]+)?|\.README\.md-[0-9a-f]+")
"""What a call that was stopped has left: folders of draws, and files that were being written."""


def require_drawn_weights(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` where a draw is no set of weights: a site has one for each example or token."""
    for site in model.sites:
        if site.granularity is not Granularity.GLOBAL:
            raise ConfigError(
                f"{type(guide).__name__} draws {site.name!r} anew for each {site.granularity.value}: a draw is another "
                "function of every input, so no LoRA folder can hold it. Serve it with this library (predict, or save "
                "and load). For folders take a posterior over weights: of this structure one with "
                "granularity='global' and, say, MeanField, or a system such as 'blob', 'scalabl' or 'fixed-e' with "
                "granularity='global'. The mean alone, where weights are random, is to_lora's."
            )


def require_drawable_head(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where the head is random and a draw of it is no linear layer."""
    if model.random_head and not isinstance(model.head, _DRAWN):
        raise ConfigError(
            f"This {type(model).__name__} has a {type(model.head).__name__}, and no draw of that head is a linear "
            "layer that a LoRA folder could hold. Take the head BayesianLinear or JointLinear, or one that is "
            "not random; bayes_adapters.save keeps this one."
        )


def require_random(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` where all draws would be the same weights."""
    if not model.latent_sites or (guide.deterministic and not model.head_sites):
        raise ConfigError(
            f"Nothing is random under {type(guide).__name__}: all draws are the same weights. Write the one LoRA: "
            "to_peft(folder, model), for a model with sites of to_lora(model, guide, backbone)."
        )


def require_new(folder: Path) -> None:
    """Raise :class:`AdapterFileError` unless ``folder`` is absent or empty."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if names and all(_DRAW.fullmatch(name) for name in names):
        raise AdapterFileError(
            f"The folder {str(folder)!r} holds {len(names)} draws and no {CARD}, which is written last: a call was "
            "stopped before it had written all of them. Delete the folder, or choose a new one; nothing was written."
        )
    if names:
        raise occupied(folder, names, "place for draws beside them", "a new folder")
