"""Several adapters on one frozen backbone, by names: added, switched, deleted, and mixed within a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers, remove
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import unknown_name
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.surgery._named_checks import require_free_name, require_rows, require_same_backbone
from bayes_adapters.surgery.switching import activate, active


class NamedAdapters:
    """Name → model and guide, all on one backbone, one of them in it at a time.

    Each keeps its structure, head, likelihood and posterior; the frozen weights are there once. Adding and switching
    change no tensor, so every adapter answers as if it had the backbone for itself.

    Args:
        backbone: the plain one.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, Categorical
    >>> from bayes_adapters.systems import build
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> named = NamedAdapters(BertModel(tiny))
    >>> _ = named.add("mood", *build("blob", named.bare(), Bernoulli(), num_data=10, rank=2))
    >>> _ = named.add("topic", *build("c-lora", named.bare(), Categorical(3), rank=2))
    >>> list(named), named.active
    (['mood', 'topic'], 'topic')
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5], [4, 6], [7, 8]])})
    >>> answers = named.predict(batch, ["topic", "mood", "topic"], num_samples=4)
    >>> {name: (rows.tolist(), tuple(answer.mean.shape)) for name, (rows, answer) in answers.items()}
    {'topic': ([0, 2], (2, 3)), 'mood': ([1], (1,))}
    >>> named.delete("topic")
    >>> list(named), named.active
    (['mood'], None)
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self._pairs: dict[str, tuple[AdapterModel, AdapterGuide]] = {}

    def bare(self) -> nn.Module:
        """Take out what is active and return the backbone, to build or load the next adapter on."""
        with exclusive():
            return remove(self.backbone)

    def add(self, name: str, model: AdapterModel, guide: AdapterGuide) -> AdapterModel:
        """Keep an adapter under ``name``; it becomes the active one. PEFT's ``add_adapter``.

        Raises:
            ConfigError: the name is taken, the guide is another model's, or the model is on another backbone.
        """
        require_free_name(name, self._pairs)
        require_same_backbone(model, self.backbone)
        activate(model)
        require_pair(model, guide)
        self._pairs[name] = model, guide
        return model

    def activate(self, name: str) -> AdapterModel:
        """Make the adapter ``name`` the one in the backbone, and return its model. PEFT's ``set_adapter``."""
        return activate(self[name][0])

    def delete(self, name: str) -> None:
        """Forget an adapter; if it is active, the backbone is then without any. PEFT's ``delete_adapter``."""
        model, _ = self[name]
        with exclusive():
            if self._in_it(model):
                remove(self.backbone)
            del self._pairs[name]

    @property
    def active(self) -> str | None:
        """The name of the adapter in the backbone; None if there is none, or none of these."""
        return next((name for name, (model, _) in self._pairs.items() if model.layers and self._in_it(model)), None)

    def predict(
        self, batch: Batch, names: Sequence[str], **options: Any
    ) -> dict[str, tuple[Int[Tensor, " n"], Prediction]]:
        """Predict every row of a batch under the adapter that is named for it.

        The rows of one adapter run together, each row once per draw, so the frozen layers do the work of one batch. A
        row's noise is a function of the seed and of its index in the data set: its answer is that of the row alone.

        Args:
            batch: B rows; of another task than ``targets`` are they must not be given.
            names: of the B rows' adapters.
            **options: of :func:`bayes_adapters.predict`.

        Returns:
            Name → the numbers of its rows, shape (n,), int64, and the prediction of these n rows, in this order.

        Raises:
            ConfigError: a name is unknown, or there are not B of them.
        """
        require_rows(names, batch)
        found: dict[str, tuple[Tensor, Prediction]] = {}
        for name in dict.fromkeys(names):
            model, guide = self[name]
            rows = torch.tensor([row for row, own in enumerate(names) if own == name])
            with active(model):
                found[name] = rows, predict(model, guide, batch[rows.to(batch.ids.device)], **options)
        return found

    def __getitem__(self, name: str) -> tuple[AdapterModel, AdapterGuide]:
        """Return the model and guide of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self._pairs:
            raise unknown_name("adapter", name, self._pairs)
        return self._pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def _in_it(self, model: AdapterModel) -> bool:
        with unwrapped(self.backbone) as plain:
            return list(adapted_layers(plain).values()) == list(model.installed.values())
