"""Data as TRL's ``SFTTrainer`` prepares them, for a :class:`~bayes_adapters.trainer.BayesTrainer`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from bayes_adapters.errors import missing_package
from bayes_adapters.trainer import _checks


class SFTData(NamedTuple):
    """Arguments of a ``BayesTrainer``: ``BayesTrainer(model, guide, args, **data._asdict())``.

    Args:
        train_dataset: rows of ``input_ids`` and ``labels``, −100 where a token is read and not learnt.
        eval_dataset: the same, or None.
        data_collator: TRL's, which pads them on the right.
        processing_class: the tokenizer, with a token for padding; checkpoints have it beside the adapter.
    """

    train_dataset: Any
    eval_dataset: Any
    data_collator: Callable[[list[Any]], dict[str, Any]]
    processing_class: Any


def sft_data(
    backbone: nn.Module,
    tokenizer: Any,
    args: Any,
    train_dataset: Any,
    eval_dataset: Any = None,
    *,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> SFTData:
    """Let TRL's own ``SFTTrainer`` tokenise, mask, truncate and collate; a ``BayesTrainer`` trains on what it made.

    An ``SFTTrainer`` changes the model that it is given, whose loss it takes from a forward pass of its own. Here it
    gets one of the backbone's class and configuration without weights (on the device ``"meta"``), which is then thrown
    away: the backbone stays as it is, and the loss is the negative ELBO under the likelihood ``NextToken``. Texts of
    ``prompt`` and ``completion`` are learnt from the completion on (``completion_only_loss``), conversations by
    their template, with ``assistant_only_loss`` from the assistant's words alone. Rows without a learnt token are left
    out by TRL: a model's ``num_data`` is ``len(data.train_dataset)``.

    Args:
        backbone: a causal language model.
        tokenizer: of the backbone.
        args: an ``SFTConfig``, which goes to the ``BayesTrainer`` as well. Options of it that change the loss or put
            several texts into a row are refused by name; TRL's default ``gradient_checkpointing=True`` is one.
        train_dataset: a ``datasets.Dataset`` of ``prompt`` and ``completion``, ``text`` or ``messages``, or tokenised.
        eval_dataset: the same, or name → data set, or None.
        formatting_func: row → text, as of ``SFTTrainer``.

    Raises:
        ConfigError: an option that cannot work, or a template that adds tokens which the backbone does not have.
        MissingResourceError: trl is not installed.

    >>> import tempfile
    >>> from datasets import Dataset
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from trl import SFTConfig
    >>> words = Tokenizer(models.WordLevel({"[END]": 0, "1+1=": 1, "2": 2}, unk_token="[END]"))
    >>> from tokenizers.pre_tokenizers import WhitespaceSplit
    >>> words.pre_tokenizer = WhitespaceSplit()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[END]")
    >>> tiny = LlamaConfig(
    ...     vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> args = SFTConfig(tempfile.mkdtemp(), activation_checkpointing=False, bf16=False, disable_tqdm=True)
    >>> rows = Dataset.from_list([{"prompt": "1+1= ", "completion": "2 "}])
    >>> sft_data(LlamaForCausalLM(tiny), tokenizer, args, rows).train_dataset[0]["labels"]
    [-100, 2, 0]
    """
    _checks.check_arguments(args, {})
    try:
        from trl import SFTTrainer
    except ImportError as error:
        raise missing_package("sft_data", "trl", "sft") from error
    config: Any = copy.deepcopy(backbone.config)
    with torch.device("meta"), torch.random.fork_rng([]):
        shape: Any = type(backbone)(config)
        shape.hf_device_map = {"": "meta"}  # by which a Trainer leaves it where it is
    with torch.random.fork_rng():
        theirs = SFTTrainer(
            shape,
            copy.copy(args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            formatting_func=formatting_func,
        )
    _checks.check_vocabulary(theirs.model.config.vocab_size, backbone)
    return SFTData(theirs.train_dataset, theirs.eval_dataset, theirs.data_collator, theirs.processing_class)
