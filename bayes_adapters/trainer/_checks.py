"""What a Trainer cannot do here, by name, and data that are no examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError, described

_OFF: tuple[Any, ...] = (None, False, 0, "", "no", "None", [], {})
_NEEDS_TRANSFORMERS = "it changes a transformers model from inside, and what is trained here is an ELBO"
_REFUSED = {
    "fp16": "float16 would need loss scaling; bf16=True computes in bfloat16 and keeps parameters in float32",
    "fp16_full_eval": "it would cast the posterior itself; bf16=True predicts in bfloat16 and leaves it in float32",
    "bf16_full_eval": "it would cast the posterior itself; bf16=True predicts in bfloat16 and leaves it in float32",
    "torch_compile": "Pyro's handlers break its graph at every sample statement",
    "deepspeed": "its engine takes the optimiser over and shards what guides read whole; use torchrun alone",
    "fsdp": "evaluation reads adapters and guide outside the pass in which FSDP has them whole; use torchrun alone",
    "label_smoothing_factor": "smoothed labels have no density under the likelihood; Bernoulli takes soft targets",
    "neftune_noise_alpha": _NEEDS_TRANSFORMERS,
    "use_liger_kernel": _NEEDS_TRANSFORMERS,
    "gradient_checkpointing": "the Trainer would switch it on in the ELBO; switch it on in the backbone yourself",
    "activation_checkpointing": "the Trainer would switch it on in the ELBO; switch it on in the backbone yourself",
    "auto_find_batch_size": "a run with smaller batches is another one: choose per_device_train_batch_size",
    "group_by_length": "examples come in the order of fit, shuffled or not",
    "include_for_metrics": "compute_metrics gets predictions and labels",
    "include_inputs_for_metrics": "compute_metrics gets predictions and labels",
    "batch_eval_metrics": "the predictive of all examples is there at once",
    "include_num_input_tokens_seen": "batches are Batch, whose inputs need not be tokens",
    "parallelism_config": "processes of torchrun share each batch's examples, and nothing else",
    "ignore_data_skip": "a run that goes on skips batches by number, without reading them, and is then the same run",
    "push_to_hub": "the Trainer would push a state_dict; bayes_adapters.files.hub pushes an adapter that load() reads",
}
_NOT_GIVEN = {
    "compute_loss_func": "the loss is the negative ELBO; another density is another likelihood",
    "preprocess_logits_for_metrics": "predictions are averages of probabilities over draws, and no logits",
}
_OPTIMISERS = ("lomo", "adalomo", "galore", "apollo")


def check_arguments(args: Any, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for options of a Trainer that cannot work here, by name."""
    wrong = {name: why for name, why in _REFUSED.items() if getattr(args, name, None) not in _OFF}
    wrong |= {name: why for name, why in _NOT_GIVEN.items() if options.get(name) is not None}
    wrong |= _of_sft(args)
    strategy = value_of(getattr(args, "train_sampling_strategy", "random"))
    if strategy not in ("random", "sequential"):
        wrong["train_sampling_strategy"] = "examples come in the order of fit: 'random' or 'sequential'"
    optimiser = value_of(args.optim)
    if optimiser.startswith(_OPTIMISERS):
        wrong["optim"] = f"{optimiser} looks into a transformers model; take AdamW, or pass optimizers="
    if len(getattr(args, "label_names", None) or ()) > 1:
        wrong["label_names"] = "of several targets, a data_collator makes Batch(inputs, {task: targets})"
    if getattr(args, "n_gpu", 1) > 1:
        wrong["n_gpu"] = (
            "DataParallel copies a model without its adapters' guide; start one process per GPU by torchrun"
        )
    config = getattr(args, "accelerator_config", None)
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            wrong[f"accelerator_config.{name}"] = "every process takes its part of each batch itself"
    if wrong:
        listed = "\n".join(f"  {name}: {why}." for name, why in wrong.items())
        raise ConfigError(f"BayesTrainer cannot do what these options ask for:\n{listed}\nLeave them out.")


def _of_sft(args: Any) -> dict[str, str]:
    """Options of TRL's ``SFTConfig`` that make another loss, or rows of several texts → why not."""
    rows = "one row would hold several texts, and the KL counts rows; packing_strategy='wrapped' cuts a stream in rows"
    wrong = {}
    for name in ("packing", "eval_packing"):
        if getattr(args, name, None) and args.packing_strategy != "wrapped":
            wrong[f"{name} by {args.packing_strategy!r}"] = rows
    if getattr(args, "padding_free", False):
        wrong["padding_free"] = rows
    if getattr(args, "loss_type", "nll") != "nll":
        wrong[f"loss_type={args.loss_type!r}"] = "the loss is the negative ELBO, of which the NLL is a part"
    if getattr(args, "activation_offloading", False):
        wrong["activation_offloading"] = _NEEDS_TRANSFORMERS
    if getattr(args, "router_aux_loss_coef", None):
        wrong["router_aux_loss_coef"] = "a loss of routers is no density, and the base that has them is frozen"
    return wrong


def check_vocabulary(size: int, backbone: Any) -> None:
    """Raise :class:`ConfigError` where a chat template has brought tokens that the backbone does not have."""
    if size != backbone.config.vocab_size:
        raise ConfigError(
            f"chat_template_path brought new tokens, {size} in all, and the backbone has {backbone.config.vocab_size}. "
            "Take a template of tokens that it has, as a .jinja file, or resize the backbone's embeddings first."
        )


def value_of(choice: Any) -> str:
    """Return an option's value, whether it is a string or a member of an enumeration."""
    return str(getattr(choice, "value", choice))


def check_pair(model: object, guide: object, model_init: object) -> None:
    """Raise :class:`ConfigError` unless there are a model and a guide, or a function that makes them."""
    if model_init is None and (model is None or guide is None):
        raise ConfigError(
            "BayesTrainer needs a model and its guide: BayesTrainer(model, guide, args, …), or model_init=."
        )
    if model_init is not None and not (model is None and guide is None):
        raise ConfigError("Pass either model and guide, or model_init=, a function that returns both.")
    if model_init is not None and not callable(model_init):
        raise ConfigError(f"model_init must be a function () → (model, guide); got {model_init!r}.")


def check_search(model_init: object, backend: str = "", options: Mapping[str, Any] | None = None) -> None:
    """Raise :class:`ConfigError` for a search that has no models of its own, or of several trials in one process."""
    if model_init is None:
        raise ConfigError(
            "There is no model_init=, a function (trial) → (model, guide): each trial trains a model of its own. Pass "
            "it to BayesTrainer in the place of model and guide."
        )
    jobs = (options or {}).get("n_jobs", 1) if backend == "optuna" else 1
    if jobs != 1:
        raise ConfigError(
            f"n_jobs={jobs}: the threads would train one Trainer's model together. Start several processes that share "
            "storage= and study_name=, with load_if_exists=True."
        )


def made_pair(found: object) -> tuple[Any, Any]:
    """Return what model_init made; raise :class:`ConfigError` unless it is a pair."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"model_init must return (model, guide); got {described(found)}.")
    return found


def check_data_set(name: str, dataset: Any) -> None:
    """Raise :class:`DataError` unless a data set has a length and items by number."""
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} needs len() and items by number, which number the examples and count the KL; got "
            f"{described(dataset)}. Collect an iterable first: list(items)."
        )
    if len(dataset) and isinstance(dataset, list | tuple) and isinstance(dataset[0], Batch) and dataset[0].size > 1:
        raise DataError(
            f"{name} is a list of batches, and a Trainer cuts batches itself. Pass one large Batch, or a data set of "
            "examples with data_collator= that returns a Batch; fit() takes a list of batches."
        )


def check_collated(found: object) -> None:
    """Raise :class:`DataError` unless a collator has made a dictionary of tensors."""
    if not isinstance(found, Mapping):
        raise DataError(
            f"data_collator must return a dictionary of tensors or a Batch; it returned {described(found)}. Of a data "
            "set of Batch pass one large Batch, which needs no collator."
        )
    other = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if other:
        raise DataError(
            f"data_collator returned {other[0]!r} as {described(found[other[0]])}, not as a tensor. Leave the column "
            "out: remove_unused_columns=True keeps what is read, and labels."
        )


def check_size(batch: Batch, rows: Sequence[int]) -> None:
    """Raise :class:`DataError` unless a batch has one example per row."""
    if batch.size != len(rows):
        raise DataError(
            f"data_collator made {batch.size} examples of {len(rows)} items. It must keep one example per item: the KL "
            "of the data set counts them."
        )


def require_targets(batch: Batch) -> None:
    """Raise :class:`DataError` for a batch without targets in training."""
    if batch.targets is None:
        raise DataError(
            "The training data have no labels. Name the column 'labels' (or 'label'), say TrainingArguments("
            "label_names=[…]), or let data_collator return Batch(inputs, targets)."
        )


def no_pruning() -> ConfigError:
    """Build the error for a recipe that takes ranks out while it trains."""
    return ConfigError(
        "The recipe of this system takes ranks out while it trains, and a Trainer's optimiser and checkpoints cannot "
        "follow. Train by bayes_adapters.training.fit, or pass recipe=None and a kl_weight."
    )
