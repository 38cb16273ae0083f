"""Another head on a trained adapter."""

from __future__ import annotations

from bayes_adapters.heads import Head
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._random_weight_checks import read_num_data
from bayes_adapters.surgery._rebuild import rebuilt


def with_head(
    model: AdapterModel, guide: AdapterGuide, head: Head, *, num_data: int | None = None
) -> tuple[AdapterModel, AdapterGuide]:
    """Return a trained model and its guide with ``head``, untrained, in the place of the head that they have.

    Everything else is kept: adapters, likelihood, contexts, what is frozen. Model and guide are new ones, in eval mode,
    on a copy of the backbone that shares the memory of the frozen weights; those given stay as they are. Train them
    with ``fit``; to train the head alone, set ``requires_grad_(False)`` on the parameters of the adapters first.

    Args:
        model: any trained model.
        guide: its guide.
        head: see :mod:`bayes_adapters.heads`; one that no model has yet.
        num_data: N, the training examples, for a head with a posterior; None takes the model's.

    Returns:
        ``(model, guide)``.

    Raises:
        ConfigError: guide and model do not belong together, or the head does not fit the likelihood.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.heads import BayesianLinear
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> point = LoRA(BertModel(tiny), Categorical(2), rank=2)
    >>> model, guide = with_head(point, Delta(point), BayesianLinear(), num_data=16)
    >>> answer = predict(model, guide, Batch({"input_ids": torch.randint(20, (3, 6))}))
    >>> type(point.head).__name__, bool((answer.epistemic > 0).all())
    ('LinearHead', True)
    """
    require_pair(model, guide)
    return rebuilt(model, guide, head=head, num_data=read_num_data(num_data, model))
