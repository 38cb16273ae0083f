"""What a guide tells ``save`` is all that it is: rebuilt from its config and its state, it gives the same numbers."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from typing import Any

import torch

from bayes_adapters import registry
from bayes_adapters.adapters.installation import remove
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files import load, save
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.testing.case import Case, seeded, terms
from bayes_adapters.testing.report import CheckError, NotApplicableError


def check_files(case: Case) -> str:
    """Check that the guide made from ``config()`` and ``state_dict()`` has its losses and predictions, bit for bit.

    Where the class is registered under its name, the same through ``save`` and ``load`` on a new backbone.

    Raises:
        CheckError: something is lost.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_files(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))
    'The same numbers from config() and state_dict(), and through save() and load().'
    """
    model, guide = case.build()
    kind = type(guide)
    try:
        config = json.loads(json.dumps(guide.config()))
    except (NotImplementedError, TypeError) as error:
        raise CheckError(
            f"config() raises {type(error).__name__}: {error}".rstrip(": ") + ".",
            "config() returns the constructor's arguments other than the model, as JSON.",
            "config() is missing, or returns a tensor, a class or an enumeration; return its plain value.",
        ) from None
    other = case.model()
    with seeded(case.seed + 1000):  # another start than the guide's own had
        try:
            again = kind(other, **config)
        except TypeError as error:
            raise CheckError(
                f"{kind.__name__}(model, **config()) raises TypeError: {error}.",
                "config() has the names of the constructor's arguments.",
                "an option was renamed or is missing in config().",
            ) from None
    try:
        again.load_state_dict(guide.state_dict())
    except RuntimeError as error:
        raise CheckError(
            f"the state does not fit the guide made from config(): {error}",
            "config() determines every shape.",
            "an option that sets a size is missing in config().",
        ) from None
    _require_same(case, (model, guide), (other, again), "made from config() and state_dict()")
    try:
        registered = registry.find("guide", registry.name_of("guide", kind)) is kind
    except ConfigError:
        registered = False
    if not registered:
        return "The same numbers from config() and state_dict(); not registered, so save() and load() were not tried."
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(folder, model, guide)
            loaded = load(folder, remove(case.model().backbone))
        except (ConfigError, AdapterFileError) as error:
            raise CheckError(
                f"save() or load() refuses the guide: {error}",
                "a saved adapter can be loaded on a new copy of its backbone.",
                "see the message; a guide that thaws the backbone, or has NaN in its state, cannot be saved.",
            ) from None
    _require_same(case, (model, guide), loaded, "that was saved and loaded")
    return "The same numbers from config() and state_dict(), and through save() and load()."


def _require_same(
    case: Case, one: tuple[AdapterModel, AdapterGuide], two: tuple[AdapterModel, AdapterGuide], how: str
) -> None:
    def numbers(model: AdapterModel, guide: AdapterGuide) -> dict[str, Any]:
        found = {"predict()": predict(model, guide, case.batch, num_samples=3).mean}
        with suppress(NotApplicableError):
            found["the loss"] = terms(model, guide, case.batch).loss.detach()
        return found

    before, after = numbers(*one), numbers(*two)
    for what, value in before.items():
        if not torch.equal(value, after[what]):
            raise CheckError(
                f"{what} of the guide {how} differs by {float((value - after[what]).abs().max()):.3g}.",
                "it gives the same numbers.",
                "a tensor that the posterior uses is a plain attribute; make it an nn.Parameter or register_buffer(), "
                "or an option that changes the posterior is missing in config().",
            )
