"""What model, guide and prediction check, beside the mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers, require_unadapted
from bayes_adapters.backbones.placement import require_loaded
from bayes_adapters.backbones.quantised import require_unpacked
from bayes_adapters.conditions import refuse_where
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import require_length
from bayes_adapters.errors import (
    BayesAdaptersError,
    ConfigError,
    DataError,
    NonFiniteError,
    described,
    near_matches,
    whole_number,
)
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.priors import Prior
from bayes_adapters.sites import Granularity, Part, Site

_HUGE = 1e15


def checked_ranks(ranks: Mapping[str, int], paths: Sequence[str], rank: int) -> Mapping[str, int]:
    """Return ``ranks``; raise :class:`ConfigError` if it names no adapted layer or a rank outside 0 … ``rank``."""
    unknown = [path for path in ranks if path not in paths]
    wrong = [f"{path!r}: {left}" for path, left in ranks.items() if not (isinstance(left, int) and 0 <= left <= rank)]
    if unknown:
        first = f", the first is {paths[0]!r}" if paths else ""
        raise ConfigError(
            f"ranks names {unknown[0]!r}, which is no adapted layer.{near_matches(unknown[0], paths)} It maps paths of "
            f"adapted layers to ranks; there are {len(paths)}{first}."
        )
    if wrong:
        raise ConfigError(f"ranks must be whole numbers from 0 to rank={rank}; got {', '.join(wrong[:4])}.")
    return ranks


def require_layers(backbone: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise :class:`ConfigError` unless ``backbone`` holds these layers at their paths."""
    for path, layer in layers.items():
        if backbone.get_submodule(path) is not layer:
            raise ConfigError(
                f"The backbone's layer {path!r} no longer holds this model's adapter: remove(backbone) took it out, or "
                "another model has put its own there. bayes_adapters.surgery.switching.activate(model) puts it back."
            )
    others = {} if layers else adapted_layers(backbone)  # a model without adapters runs on the frozen backbone
    if others:
        raise ConfigError(
            f"This model has no adapters and its backbone has another model's, at {min(others)!r}. "
            "bayes_adapters.surgery.switching.activate(model) takes them out."
        )


def require_usable(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` for a backbone that is none, is not loaded, has adapters, or could not be trained."""
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"The backbone must be a torch module; got a {type(backbone).__name__}.")
    if torch.is_inference_mode_enabled():
        raise ConfigError("Build models outside torch.inference_mode(): what is made inside can never be trained.")
    require_loaded(backbone)
    require_unpacked(backbone)
    require_unadapted(backbone)


def require_withholdable(names: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for the first of ``names`` that cannot be withheld."""
    for name in names:
        if name not in allowed:
            raise ConfigError(
                f"There is no modality {name!r} to withhold.{near_matches(name, allowed)} Of this model and batch can "
                f"be withheld: {', '.join(allowed) or 'none'}. The own inputs of a model's only backbone cannot be, "
                "nor can those of the encoder whose tokens have the targets."
            )


def check_batch(batch: Batch, backbone: nn.Module, device: torch.device) -> None:
    """Refuse a batch that the model on ``device`` cannot take.

    Raises:
        ConfigError: the backbone was offloaded after the model was built.
        DataError: a part of it is on another device.
        NonFiniteError: an input or a context frame is NaN or infinite.
    """
    if device.type == "meta":
        require_loaded(backbone)
    tensors = {f"inputs[{k!r}]": v for k, v in batch.inputs.items()}
    tensors |= {f"context[{k!r}]": v.values for k, v in batch.context.items()}
    placed = dict(tensors)
    if isinstance(batch.targets, Mapping):
        placed |= {f"targets[{k!r}]": v for k, v in batch.targets.items()}
    elif batch.targets is not None:
        placed["targets"] = batch.targets
    for name, value in placed.items():
        if value.device != device:
            raise DataError(
                f"{name} is on {value.device} and the model on {device}. Call batch.to({str(device)!r}); fit and "
                "predict do that themselves."
            )
    for name, value in tensors.items():
        if value.is_floating_point():
            # One sum is 20 times cheaper than looking at every element; only a sum that is not finite needs that look.
            refuse_where(~value.sum().isfinite(), partial(_not_finite, name, value))


def _not_finite(name: str, value: Tensor) -> NonFiniteError | None:
    rows = (~torch.isfinite(value)).reshape(len(value), -1).any(-1).nonzero().flatten().tolist()
    if not rows:
        return None
    return NonFiniteError(
        f"{name} holds NaN or infinite values in rows {rows[:8]}. Look at these examples' features; a silent or "
        "corrupt recording, or a division by zero in normalisation, is the usual cause. No weight was changed."
    )


def require_finite(model: nn.Module, what: str, values: Tensor, examples: int) -> None:
    """Raise :class:`NonFiniteError` if ``values`` are NaN or infinite for an example.

    Entropies of such numbers may look like certainty: NaN is not greater than 0, and an infinite logit is a
    probability of 1.

    Args:
        model: its parameters are looked at for the cause.
        what: names ``values`` in the error.
        values: shape (S·B, …) in the order [S, B].
        examples: B.
    """

    def explain() -> NonFiniteError | None:
        bad = (~values.isfinite()).reshape(values.shape[0], -1).any(-1).reshape(-1, examples).any(0)
        rows = bad.nonzero().flatten().tolist()[:8]
        return non_finite(f"{what} NaN or infinite in rows {rows} of the batch", model) if rows else None

    # One sum is cheaper than looking at every element; only a sum that is not finite needs that look.
    refuse_where(~values.sum().isfinite(), explain)


def non_finite(what: str, *modules: nn.Module) -> NonFiniteError:
    """Build the error for numbers that are not finite, naming the first tensor of ``modules`` that is not."""
    tensors = [(n, t) for m in modules for n, t in [*m.named_parameters(), *m.named_buffers()] if t.is_floating_point()]
    broken = next((name for name, t in tensors if not bool(t.isfinite().all())), None)
    trained = [(name, t.detach()) for name, t in tensors if t.requires_grad and t.numel()]
    huge = next((name for name, t in trained if float(t.abs().max()) > _HUGE), None)
    again = "Train again with a lower learning rate or clip_norm, or load an earlier checkpoint."
    cause = (
        "The model's own tensors are finite: look at the guide's, at these examples' inputs for values far outside "
        "those of training, and at the backbone's precision, as float16 overflows above 65504."
    )
    if broken is not None:
        what_broke = "training diverged, or the file it comes from is damaged"
        cause = f"The tensor {broken!r} holds NaN or infinity: {what_broke}. {again}"
    elif huge is not None:
        cause = f"The tensor {huge!r} has entries above {_HUGE:g}, whose products overflow: training diverged. {again}"
    return NonFiniteError(f"{what}. {cause}")


def require_likelihood(likelihood: object) -> None:
    """Raise :class:`ConfigError` unless it is a likelihood."""
    if not isinstance(likelihood, Likelihood):
        raise ConfigError(
            "The likelihood must be an object such as Bernoulli() or Categorical(num_classes=3); got "
            f"{described(likelihood)}. The order is (backbone, likelihood)."
        )


def check_structure(
    name: str,
    parts: Sequence[Part],
    prior: object,
    granularity: object,
    *,
    flipout: bool,
    num_data: int | None,
    random_head: bool,
) -> None:
    """Raise :class:`ConfigError` if options of the model ``name`` have no effect, or ``num_data`` is no size."""
    if num_data is not None:
        whole_number("num_data", num_data)
    if not parts and not random_head and not (prior is None and granularity is None):
        raise ConfigError(
            f"A {'prior' if granularity is None else 'granularity'} was given but nothing in {name} is random; take a "
            "structure with random parts, such as StochasticCore."
        )
    if flipout and Part.A not in parts:
        raise ConfigError(
            f"flipout=True has no effect in {name}: it decorrelates the draws of a random A. Leave it out, or take "
            "StochasticDown."
        )


def require_apart(structure: str, apart: bool, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where two embeddings are compared and the structure lets them see each other."""
    if likelihood.two_sides and not apart:
        raise ConfigError(
            f"{type(likelihood).__name__} compares two embeddings that must not see each other, and {structure} does "
            "not keep two encoders apart: an embedding that has seen its own partner would be recognised by that. Take "
            "ConcatLoRA or ConcatCore; or score pairs with this structure, by the likelihood Candidates."
        )


def require_one_function(what: str, differs: bool, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where rows of one draw see different functions and the likelihood compares them."""
    if differs and likelihood.compares:
        raise ConfigError(
            f"{type(likelihood).__name__} compares the rows of a batch, which are then embedded by one draw; under "
            f"{what} every row has another. Take False."
        )


def require_num_data(num_data: int | None, sites: Sequence[Site], prior: Prior) -> None:
    """Raise :class:`ConfigError` if something counts once per data set and the data set's size is not known."""
    # the posterior of a mask is its prior, so that its KL is 0, however often it counts
    counted = [site.name for site in sites if site.granularity is Granularity.GLOBAL and site.part != Part.MASK]
    counted += [hyper.name for hyper in prior.hyper_sites]
    if num_data is None and counted:
        have = f"and {len(counted) - 1} more have" if counted[1:] else "has"
        raise ConfigError(
            f"The site {counted[0]!r} {have} one KL per data set, so the model must know the data set's size: pass "
            "num_data=len(training set)."
        )


def require_batch(batch: object) -> None:
    """Raise :class:`DataError` unless it is a batch."""
    if not isinstance(batch, Batch):
        raise DataError(f"A model takes a Batch; got a {type(batch).__name__}. Wrap it: Batch(inputs, targets).")


def require_tokens_kept(mask: Tensor | None, targets: object, length: int) -> None:
    """Raise :class:`DataError` unless mask and targets (B, T) are as long as the ``length`` tokens that came back."""
    if mask is not None:
        require_length(mask, length, "the backbone returns")
    if isinstance(targets, Tensor) and targets.dim() == 2 and targets.shape[1] != length:
        raise DataError(
            f"targets has {targets.shape[1]} tokens and the backbone returns {length}. One target per token "
            "needs a backbone that keeps the token axis; positions without a label, such as a class token, have the "
            "target -100."
        )


def refused_parameters(error: Exception) -> str | None:
    """Return what torch said when it refused a distribution's parameters, NaN mostly; None for any other error.

    A matrix that has no Cholesky factor is such a parameter: as a rule it holds NaN, or numbers that float32 loses.
    """
    said = error.__cause__ if isinstance(error, NonFiniteError) else error
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return f"no factor of a matrix: {str(error).rstrip('.')}"
    where, refused, _ = str(said).partition(", but found invalid values")
    return where if refused and not isinstance(said, BayesAdaptersError) else None


@contextmanager
def named_non_finite(*modules: nn.Module) -> Iterator[None]:
    """Turn torch's refusal of a distribution with NaN parameters into an error that names the tensor at fault."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        where = refused_parameters(error)
        if where is None:
            raise
        raise non_finite(f"A distribution could not be made: {where}", *modules) from error
