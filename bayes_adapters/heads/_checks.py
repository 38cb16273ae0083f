"""What heads refuse: likelihoods with another number of targets, and options that belong elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    described,
    missing_package,
    positive_number,
    unknown_name,
)
from bayes_adapters.likelihoods import Categorical, Likelihood, NextToken


def require_same_count(head: str, pooling: str, per_token: bool, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless head and likelihood are both per token or both per example."""
    if likelihood.per_token == per_token:
        return
    kinds = {True: ("token", "Categorical"), False: ("example", "Tagging")}
    (wanted, other), (given, _) = kinds[likelihood.per_token], kinds[per_token]
    raise ConfigError(
        f"{type(likelihood).__name__} has one target per {wanted}, and the {head} with pooling={pooling!r} leaves one "
        f"vector per {given}. Leave pooling out, or take {other} as the likelihood."
    )


def require_head(head: Any, base: type, pooling: str | None) -> Any:
    """Return ``head``; raise :class:`ConfigError` unless it is one, and no ``pooling`` is given beside ``head=``."""
    if not isinstance(head, base):
        raise ConfigError(
            "head must be an object such as LinearHead(pooling='cls'), of a subclass of bayes_adapters.heads.Head; got "
            f"{described(head)}."
        )
    if pooling is not None:
        raise ConfigError(
            f"pooling={str(pooling)!r} is an option of the head, and head= is given: pass it there, "
            f"{type(head).__name__}(pooling={str(pooling)!r})."
        )
    return head


def require_tokens(model: str, lost: bool, likelihood: object) -> None:
    """Raise :class:`ConfigError` if the likelihood has a target per token and the structure has lost the tokens."""
    if lost:
        raise ConfigError(
            f"{model} joins several streams into one vector per example, so there is no token that "
            f"{type(likelihood).__name__} could label. Say which tokens are labelled: dense='text', an encoder's "
            "name, or dense=10 for as many segments of time. Or take a likelihood with one target per example."
        )


def require_task(task: str, tasks: Collection[str]) -> None:
    """Raise :class:`ConfigError` unless ``task`` is one of PEFT's names in ``tasks``."""
    if task not in tasks:
        raise unknown_name("task", str(task), list(tasks))


def checked_config(config: Any, task: str) -> Any:
    """Return a configuration of transformers as its object; it may be given as a dictionary.

    Raises:
        ConfigError: it is none, or of an unknown type of model.
    """
    if isinstance(config, dict):
        from transformers import AutoConfig

        with task_model_builds(task, config):
            return AutoConfig.for_model(**config)
    if not callable(getattr(config, "to_dict", None)) or not getattr(config, "model_type", ""):
        raise ConfigError(
            f"The head for {task} needs the config of a Hugging Face model, such as backbone.config; got "
            f"{described(config)}."
        )
    return config


@contextmanager
def task_model_builds(kind: str, config: Any) -> Iterator[None]:
    """Turn transformers' errors about a model of ``kind`` that it does not have into :class:`ConfigError`."""
    model = config.get("model_type") if isinstance(config, dict) else config.model_type
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"transformers builds no {kind} for model_type={model!r}: {str(error).splitlines()[0][:300]} Take another "
            "head, such as LinearHead(pooling='cls'), and train it."
        ) from error


@contextmanager
def task_model_reads(net: nn.Module) -> Iterator[None]:
    """Turn what a task model of transformers says of inputs that its head cannot read into :class:`DataError`."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        parts = ", ".join(name for name, part in net.named_children() if next(part.parameters(), None) is not None)
        raise DataError(
            f"The head of {type(net).__name__} ({parts}) cannot read this batch: {str(error).splitlines()[0][:300]} "
            "Give the input_ids that the tokenizer makes, with its end-of-sentence and padding tokens, and set "
            "config.pad_token_id where it is None; or take another head, such as LinearHead(pooling='last')."
        ) from error


def require_initial_values(net: nn.Module) -> None:
    """Raise :class:`ConfigError` where a head has tensors that no layer of torch says the initial values of."""
    for path, module in net.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if not callable(getattr(module, "reset_parameters", None)):
            own += [name for name, _ in module.named_buffers(recurse=False)]
        else:
            own = []
        if own:
            name = f"{path}.{own[0]}".removeprefix(".")
            raise ConfigError(
                f"The head of {type(net).__name__} has {name!r}, of a {type(module).__name__}, whose initial values "
                "transformers sets in its own way. Take another head, such as LinearHead(pooling='cls'), or write this "
                "one as a subclass of bayes_adapters.heads.Head."
            )


def require_own_width(head: str, width: int, config: Any) -> None:
    """Raise :class:`ConfigError` unless features are as wide as the hidden states of the model that ``config`` is of.

    Structures that fuse modalities after the backbone are wider.
    """
    own = getattr(config, "hidden_size", width)
    if own != width:
        raise ConfigError(
            f"{head} reads the hidden states of a {config.model_type!r}, {own} wide; this model gives its head {width} "
            "numbers. Take the backbone that the config is of, and a structure that leaves its output as it is."
        )


def require_logits(net: str, logits: Any, per_token: bool, rows: int) -> None:
    """Raise :class:`ConfigError` unless a task model has returned one vector of logits per example, or per token."""
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 + per_token or shape[0] != rows:
        raise ConfigError(
            f"The head of {net} returned logits of shape {shape} for {rows} rows; one vector per "
            f"{'token' if per_token else 'example'} is needed. Take another head, such as LinearHead(pooling='cls')."
        )


def require_gpytorch(use: str) -> Any:
    """Return the module gpytorch; raise :class:`MissingResourceError`, naming what needs it, where there is none."""
    try:
        return importlib.import_module("gpytorch")
    except ImportError as error:
        raise missing_package(use, "gpytorch", "gp") from error


def require_one_per_example(head: str, likelihood: Likelihood, per_token: bool) -> None:
    """Raise :class:`ConfigError` if there would be outputs for every token."""
    if per_token:
        raise ConfigError(
            f"{head} has one output vector per example, and {type(likelihood).__name__} has one target per token. Take "
            "a likelihood with one target per example, or another head, such as LinearHead()."
        )


def require_rows_alone(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where a likelihood compares rows, of which ``head`` draws each apart."""
    if likelihood.compares:
        raise ConfigError(
            f"{type(likelihood).__name__} compares the rows of a batch, which are then of one function, and {head} "
            "draws each row apart given its inducing points. Take BayesianLinear(), whose draw is one function of all "
            "rows, or a likelihood of each pair, such as Bernoulli()."
        )


def require_positive_definite(failed: Tensor, kernel: Any) -> None:
    """Raise :class:`NonFiniteError` if the Cholesky factor of an output's kernel matrix could not be computed."""

    def explain() -> Exception:
        outputs = failed.nonzero().flatten().tolist()
        lengths, scales = (value.detach().flatten()[:4].tolist() for value in _scales(kernel))
        return NonFiniteError(
            f"The kernel matrix of the inducing points is not positive definite for outputs {outputs[:8]}: length "
            f"scales {lengths}, variances {scales}. Where they are NaN or huge training diverged: train again with a "
            "lower learning rate or clip_norm. Else look at head.inducing_points for NaN."
        )

    refuse_where(failed > 0, explain)


def _scales(kernel: Any) -> tuple[Tensor, Tensor]:
    return kernel.base_kernel.lengthscale, kernel.outputscale


def outside_a_pass(head: str, site: str) -> ConfigError:
    """A head with random weights that is called without a model, so that nothing has drawn them."""
    return ConfigError(
        f"The {site!r} of this {head} is random and is drawn when a model runs. Call the model or its guide on a "
        "batch, not the head."
    )


def require_positive(**options: object) -> None:
    """Raise :class:`ConfigError` unless each option is a positive, finite number."""
    for name, value in options.items():
        positive_number(name, value)


def inverse_gamma(name: str, prior: Any) -> tuple[float, float]:
    """Return (a, b) of the option ``name``; raise :class:`ConfigError` unless both are positive and finite."""
    if not isinstance(prior, list | tuple) or len(prior) != 2:
        raise ConfigError(f"{name} must be (a, b) of an inverse-gamma prior on a variance; got {prior!r}.")
    a, b = prior
    require_positive(**{f"{name} a": a, f"{name} b": b})
    return float(a), float(b)


def require_classes(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood has one class per example."""
    if not isinstance(likelihood, Categorical):
        raise ConfigError(
            f"The {head} models the features of each class, and {type(likelihood).__name__} has none such. Take "
            "Categorical(2) for two classes, or another head, such as VariationalLastLayer."
        )


def require_expected(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood can be averaged over Gaussian outputs in closed form."""
    if not likelihood.has_expected:
        raise ConfigError(
            f"The {head} integrates its weights out, and there is no closed form for {type(likelihood).__name__}. Take "
            "Categorical, Bernoulli, Gaussian or MultiGaussian, or the head BayesianLinear, whose weights are drawn."
        )


def require_numbers(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the targets are numbers with Gaussian noise that may be integrated out."""
    if not likelihood.expected_predicts:
        raise ConfigError(
            f"The {head} integrates over the covariance of Gaussian noise, and {type(likelihood).__name__} has none "
            "such. Take Gaussian or MultiGaussian, or the head VariationalLastLayer for classes."
        )


def require_between_0_and_1(name: str, value: float) -> None:
    """Raise :class:`ConfigError` unless 0 < ``value`` < 1."""
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} must lie in (0, 1); got {value!r}. Below 1 no two features can become one.")


def require_own_inputs(head: str, own: Collection[str], inputs: Mapping[str, Tensor]) -> None:
    """Raise :class:`DataError` where a batch masks answers and the head has none: nobody would read the mask."""
    if "answer_mask" in inputs and "answer_mask" not in own:
        raise DataError(
            f"inputs['answer_mask'] says which answers an example has, and {head} does not read it. Take the head "
            "AnswerTokens, or leave the mask out."
        )


def require_own_logits(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where a likelihood over a vocabulary would get a fresh layer as large as that."""
    if isinstance(likelihood, NextToken):
        raise ConfigError(
            f"NextToken scores the words of a language model, and {head} would be a fresh layer of "
            f"{likelihood.num_outputs} outputs. Take head=LanguageModelHead(), which reads the model's own logits."
        )


def task_of(net: Any, tasks: Mapping[str, str]) -> str:
    """Return PEFT's name of the task of a task model; raise :class:`ConfigError` for another module."""
    ends = {name.removeprefix("AutoModel"): task for task, name in tasks.items()}
    found = next((task for end, task in ends.items() if type(net).__name__.endswith(end)), None)
    if found is None or not hasattr(net, "base_model_prefix"):
        raise ConfigError(
            f"TransformersHead.of takes a model with a task head, such as {' or '.join(tasks.values())} loads; got "
            f"{described(net)}. Of other heads pass the backbone and train a new one, such as LinearHead()."
        )
    return found


def require_own_labels(config: Any, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood has as many outputs as a trained head has labels."""
    if config.num_labels != likelihood.num_outputs:
        raise ConfigError(
            f"The trained head has {config.num_labels} labels and {type(likelihood).__name__} needs "
            f"{likelihood.num_outputs} outputs. Take a likelihood of {config.num_labels} classes, or a fresh head: "
            "TransformersHead(task, config)."
        )
