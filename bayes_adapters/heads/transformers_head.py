"""The head of a Hugging Face task model, as transformers computes it, on a backbone that stands elsewhere."""

from __future__ import annotations

import copy
import json
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones._checks import require_no_task_head
from bayes_adapters.heads._checks import (
    checked_config,
    require_initial_values,
    require_logits,
    require_own_labels,
    require_own_width,
    require_task,
    task_model_builds,
    task_model_reads,
    task_of,
)
from bayes_adapters.heads.head import BackboneOutput, Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.likelihoods import Likelihood

TASKS = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}
"""PEFT's name of a task → transformers' class of its models."""


class TransformersHead(Head):
    """``f``: the logits of transformers' own task model, everything in it that is not the backbone.

    Formula: that of the ``forward`` of ``AutoModelForSequenceClassification`` (one output per example) or
    ``AutoModelForTokenClassification`` (one per token) for the architecture: RoBERTa's ``out_proj tanh(dense h_1)``,
    DistilBERT's, DeBERTa's, BART's on the end-of-sentence token. The ``forward`` runs with what the backbone has
    returned in the backbone's place, so no second one is built or run. While training it has its own dropout.

    Args:
        task: ``"SEQ_CLS"`` or ``"TOKEN_CLS"``. :meth:`of` takes a trained model's head over.
        config: the backbone's ``config``, or its ``to_dict()``. Its number of labels is replaced by the likelihood's K.

    Parameters have their names in the task model below ``net.``, and torch's initial values of linear and norm layers.

    Raises:
        ConfigError: the task or the architecture is none that transformers has a head for.
        DataError: in a pass, the head reads tokens, such as that of the end of a sentence, and the batch has none.

    >>> from transformers import RobertaConfig, RobertaModel
    >>> from bayes_adapters import Batch, Categorical
    >>> from bayes_adapters.models import LoRA
    >>> tiny = RobertaConfig(
    ...     vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    ... )
    >>> model = LoRA(RobertaModel(tiny), Categorical(3), rank=2, head=TransformersHead("SEQ_CLS", tiny))
    >>> model(Batch({"input_ids": torch.randint(20, (2, 5))})).shape
    torch.Size([2, 3])
    >>> [name for name, _ in model.head.named_parameters()][::2]
    ['net.classifier.dense.weight', 'net.classifier.out_proj.weight']
    """

    name: ClassVar[str] = "transformers"

    def __init__(self, task: str, config: Any) -> None:
        require_task(task, TASKS)
        # One vector per example is what the pooling says here; how it is made is the task model's own affair.
        super().__init__(Pooling.NONE if task == "TOKEN_CLS" else Pooling.MEAN)
        self.task, self._config = task, checked_config(config, task)
        self._start: dict[str, Tensor] = {}
        self._frozen = False

    @classmethod
    def of(cls, net: nn.Module, *, frozen: bool = False) -> TransformersHead:
        """Return the head of a task model that has been trained, with its weights, which are copied.

        Args:
            net: what ``AutoModelForSequenceClassification`` or ``AutoModelForTokenClassification`` has loaded. The
                backbone is then ``net.base_model``.
            frozen: whether the weights stay as they are, and the adapters alone are trained.

        Raises:
            ConfigError: ``net`` is no such model.

        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from bayes_adapters import Categorical
        >>> from bayes_adapters.models import LoRA
        >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
        >>> net = BertForSequenceClassification(tiny).eval()
        >>> model = LoRA(net.base_model, Categorical(3), rank=2, head=TransformersHead.of(net)).eval()
        >>> torch.equal(model.head.net.classifier.weight, net.classifier.weight)
        True
        """
        head = cls(task_of(net, TASKS), net.config)
        base = f"{net.base_model_prefix}."
        head._start = {k: v.detach().clone() for k, v in net.state_dict().items() if not k.startswith(base)}
        head._frozen = frozen
        return head

    @property
    def prefix(self) -> str:
        """What stands before the backbone's paths in the task model, such as ``roberta.``."""
        return f"{self.base}."

    def suit_backbone(self, backbone: nn.Module, width: int) -> None:
        require_no_task_head(backbone)

    def build(self, width: int, likelihood: Likelihood) -> None:
        require_own_width(type(self).__name__, width, self._config)
        self.net, self.base, _ = task_model(self.task, self._config, likelihood.num_outputs)
        require_initial_values(self.net)
        self.net.to_empty(device="cpu")
        for module in self.net.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        if self._start:
            require_own_labels(self._config, likelihood)
            self.net.load_state_dict(self._start)
            self.net.requires_grad_(not self._frozen)

    def read(self, output: BackboneOutput) -> Float[Tensor, "rows *T K"]:
        """Return the logits: the task model's ``forward`` on the backbone's output."""
        # A copy that shares all parameters: nothing of a pass stays on the head.
        net = copy.copy(self.net)
        net._modules = {**self.net._modules, self.base: _Returns(_cast(output.value, next(self.parameters()).dtype))}
        with task_model_reads(net):
            logits = net(**output.inputs).logits
        require_logits(type(self.net).__name__, logits, self.per_token, len(output.hidden))
        return logits

    def forward(self, features: Float[Tensor, "rows *T K"]) -> Float[Tensor, "rows *T K"]:
        return features

    def config(self) -> dict[str, Any]:
        return {"task": self.task, "config": json.loads(self._config.to_json_string(use_diff=False))}


def task_model(task: str, config: Any, num_labels: int) -> tuple[nn.Module, str, type[nn.Module]]:
    """Return transformers' task model without its backbone, on the meta device, and the backbone's name and class.

    Raises:
        ConfigError: transformers has none for this architecture, or one that is built otherwise.
    """
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = num_labels
    config._attn_implementation = "eager"  # no attention runs here, and the backbone's may need a GPU
    maker: Any = getattr(transformers, TASKS[task])
    with task_model_builds(maker.__name__, config), torch.device("meta"):
        net: nn.Module = maker.from_config(config, dtype=torch.float32)
        base = str(net.base_model_prefix)
        kind = type(net.get_submodule(base))
        del net._modules[base]
    return net, base, kind


class _Returns(nn.Module):
    """Stands where the backbone was, and returns what it returned."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _cast(output: Any, dtype: torch.dtype) -> Any:
    """Return the backbone's output with its tensors in the head's ``dtype``."""
    cast = {k: v.to(dtype) for k, v in output.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return type(output)(**{**output, **cast}) if any(v is not output[k] for k, v in cast.items()) else output
