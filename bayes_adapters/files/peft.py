"""LoRA folders of the PEFT library: read onto a plain backbone, and written; PEFT itself is not needed.

Such a folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with A and B of every adapted layer under
``base_model.model.<path>.lora_A.weight`` (r, d_in) and ``….lora_B.weight`` (d_out, r), for Linear and Conv1D alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers, require_unadapted, restored_on_error
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.files._file_checks import unreadable
from bayes_adapters.files._lock import steady
from bayes_adapters.files._peft_base import BaseWeights, part, written
from bayes_adapters.files._peft_checks import (
    check_shapes,
    require_own_configuration,
    require_own_options,
    require_plain,
    require_predicts,
)
from bayes_adapters.files._peft_config import CONFIG, Settings, read_config
from bayes_adapters.files._peft_contents import SETTINGS, contents
from bayes_adapters.files._peft_head import Head as FoundHead
from bayes_adapters.files._peft_head import (
    foreign_head,
    own_head,
    take_head,
    task_head,
    warn_of_base,
    warn_of_head,
)
from bayes_adapters.files._peft_prefix import place_of
from bayes_adapters.files._peft_tensors import (
    WEIGHTS,
    at_one_scale,
    find_prefix,
    open_weights,
    split,
)
from bayes_adapters.files._peft_write import HEAD as HEAD
from bayes_adapters.files._peft_write import STATE, replace_folder, require_free, source
from bayes_adapters.files._regular import as_folder, readable
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.files.marks import Marks
from bayes_adapters.heads import Head, TransformersHead
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import LoRA


def from_peft(
    directory: str | Path,
    backbone: nn.Module,
    likelihood: Likelihood,
    *,
    head: bool | Head | None = None,
    leave_out: str | None = None,
    write_backbone: bool = False,
    **options: Any,
) -> LoRA:
    """Build a :class:`~bayes_adapters.models.LoRA` with the adapters of a PEFT folder.

    Ranks, scale, dropout and layers come from the folder. Adapters trained inside a model with a head have a prefix in
    their paths (``bert.encoder…``): it is found by comparing them with the backbone's layers. With ``use_rslora`` the
    scale is lora_alpha / √r, so that the model's alpha is lora_alpha · √r. Where layers differ in their scale
    (``rank_pattern``, ``alpha_pattern``) the commonest is the model's, and the others' B holds the difference.

    A head that was trained along (``modules_to_save``) is taken over if it is one linear layer of the right shape that
    computes the same on a plain backbone: the one written by :func:`to_peft`; transformers' bias-free ``score``, which
    reads the last real token; the ``classifier`` of BERT, ALBERT, ERNIE and Swin, which reads the backbone's pooler, of
    ViT, which reads the first token, and of token classification, which reads all. A head with layers of its own
    (RoBERTa, DistilBERT, DeBERTa, BART) becomes a :class:`~bayes_adapters.heads.TransformersHead` if the folder holds
    all of it. Otherwise, and where there is none (a language model), a warning says so; the model's head is then a
    fresh one to be trained, and :func:`~bayes_adapters.surgery.training_free.bayesianise` refuses it until it was.

    Args:
        directory: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        backbone: the plain model the adapters were trained on, such as ``AutoModel.from_pretrained(...)``, without
            adapters. If reading fails it is left as it was given. Wrappers (``torch.compile``, DDP) are looked through.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        head: None as above; True takes over any single linear layer of the right shape too; False none. A head of
            your own, such as ``LanguageModelHead()`` where ``backbone`` is the language model itself, takes its place.
        leave_out: the half of an encoder–decoder that ``backbone`` is not, such as ``"decoder"`` where it is
            ``T5EncoderModel`` or ``BartModel.get_encoder()``: layers below that name are dropped.
        write_backbone: write weights of the backbone itself that PEFT has trained along (``bias``, ``lora_bias``,
            ``modules_to_save`` inside the backbone, ``trainable_token_indices``) into ``backbone``. It is then another
            frozen base: save it with ``save_pretrained``, for adapters that are saved now load onto it only.
        **options: ``pooling``, ``num_data`` or ``dropout`` of :class:`~bayes_adapters.AdapterModel`. Without
            ``pooling``, a head that is taken over brings its own.

    Returns:
        The model in eval mode; its hidden states are those of the PEFT model.

    Raises:
        AdapterFileError: the folder is no LoRA, damaged, for another backbone, or of a kind that these adapters cannot
            express (DoRA, adapted embeddings, …); it holds weights of the backbone itself, without
            ``write_backbone=True``; A or B holds NaN or an infinity.
        ConfigError: the backbone has adapters; an option is read from the folder; ``head=True`` and there is none;
            ``leave_out`` drops no adapted layer, or all.

    Warns:
        UserWarning: the model has a fresh head.
    """
    folder = as_folder(directory)
    require_own_options(options)
    with unwrapped(backbone) as plain:
        require_unadapted(plain)
        found = steady(folder, STATE, lambda: _read(folder, plain, leave_out, write_backbone), whole=True)
        with restored_on_error(plain), written(plain, found.base):
            ranks = found.ranks
            options["targets"] = Targets("|".join(re.escape(path) for path in found.factors))
            options |= {"rank": max(ranks.values()), "alpha": found.scaling * max(ranks.values()), "ranks": ranks}
            given = isinstance(head, Head)
            if given:
                options["head"], head = head, False
            own = "pooling" in options
            whole = None if own or head is False or found.known_head else found.task_head(plain, likelihood)
            options |= {} if whole is None else {"head": whole}
            model = LoRA(plain, likelihood, **{"dropout": found.settings.dropout, **options})
            with torch.no_grad():
                for path, layer in adapted_layers(plain).items():
                    for name, value in zip(("lora_A", "lora_B"), found.factors[path], strict=True):
                        getattr(layer, name).copy_(value)
            if whole is not None:
                whole.net.load_state_dict(found.others)
            ready = given and not any(True for _ in model.head.parameters())  # the backbone's own output path
            trained = (
                ready
                or whole is not None
                or (
                    head is not False and take_head(model, folder, found.head, found.others, wanted=bool(head), own=own)
                )
            )
            changed = tuple(found.base.names)
            Marks(None if trained else (), found.prefix, found.settings.task_type, changed).put_on(model)
        if plain is not backbone:
            model.backbone = backbone
    return model.eval()


@dataclass(frozen=True)
class _Found:
    """What a folder holds, checked against a backbone."""

    settings: Settings
    prefix: str
    factors: dict[str, tuple[Tensor, Tensor]]
    ranks: dict[str, int]
    scaling: float
    base: BaseWeights
    others: dict[str, Tensor]
    head: FoundHead | None

    @property
    def known_head(self) -> bool:
        """Whether the head is one linear layer and what it reads is known."""
        return self.head is not None and self.head.pooling is not None

    def task_head(self, backbone: nn.Module, likelihood: Likelihood) -> TransformersHead | None:
        """Return transformers' own head for the task, still without its weights, if the folder has all of them."""
        return task_head(self.others, self.prefix, backbone, likelihood, self.settings.task_type)


def _read(folder: Path, backbone: nn.Module, leave_out: str | None, write_backbone: bool) -> _Found:
    """Read the folder once; names and shapes are compared with the backbone's before any tensor is read."""
    where = source(folder)
    settings = read_config(where / CONFIG)
    file = open_weights(where / WEIGHTS)
    listed, others = split(folder, file.tensors, leave_out)
    prefix = find_prefix(folder, list(listed), backbone)
    layout = {path.removeprefix(prefix): settings.of(path) for path in listed}
    ranks = {path: rank for path, (rank, _) in layout.items()}
    check_shapes(folder, {path.removeprefix(prefix): pair for path, pair in listed.items()}, backbone, ranks)
    scales = {path: scale for path, (_, scale) in layout.items()}
    belonging = (prefix, backbone, scales, settings.tokens, write_backbone)
    part(folder, others, *belonging)
    require_own_configuration(where / CONFIG, file.metadata.get(SETTINGS, settings.checksum()), settings.checksum())
    try:
        tensors, digest = file.read()
    except OSError as error:
        raise unreadable(file.path, error) from error
    factors, others = split(folder, tensors, leave_out)
    require_predicts(file.path, tensors)
    placed, scaling = at_one_scale({path.removeprefix(prefix): pair for path, pair in factors.items()}, scales)
    base, others = part(folder, others, *belonging)
    found = own_head(where, digest) or foreign_head(others, backbone, settings.task_type)
    return _Found(settings, prefix, placed, ranks, scaling, base, others, found)


def to_peft(
    directory: str | Path, model: AdapterModel, *, prefix: str | None = None, into: nn.Module | None = None
) -> None:
    """Write a model's adapters as a PEFT folder, which ``PeftModel.from_pretrained(net, directory)`` loads.

    A head that is the task model's own goes where PEFT reads it, into ``modules_to_save``: a
    :class:`~bayes_adapters.heads.TransformersHead`, or a linear head that computes what the ``classifier`` or ``score``
    of the architecture computes. Another linear head goes into a third file (:data:`HEAD`), which PEFT ignores and
    :func:`from_peft` reads. After a crash the folder holds the old adapter or the new one for :func:`from_peft`; PEFT
    itself may find no configuration where the new one differs, and then the next call completes it.

    PEFT finds layers by their paths in ``net``, so it matters whether that is the plain backbone (``LlamaModel``,
    ``layers.0…``) or a model around it (``LlamaForCausalLM``, ``model.layers.0…``). In the other of the two PEFT says
    that it does not find the target modules.

    Args:
        directory: made when absent; an adapter there is replaced, a folder of other things is refused.
        model: a model without random parts, such as LoRA. Ranks may differ by layer; layers of rank 0 are left out.
        prefix: what stands before the backbone's paths in ``net``: ``""`` for the plain backbone (``AutoModel``),
            ``"model."`` inside ``LlamaForCausalLM``, ``"bert."`` inside ``BertForSequenceClassification``, in general
            ``f"{backbone.base_model_prefix}."``. None means the one that :func:`from_peft` found; for a model from
            elsewhere that of its TransformersHead; else, where the backbone's ``config.architectures`` names a language
            model, as that of every checkpoint of one does, that of this language model; else ``""``.
        into: ``net`` itself, or another of its class, in the place of ``prefix``: the prefix is read from its paths.

    Raises:
        ConfigError: part of the adapters is random (export its mean as a LoRA first), every layer has rank 0, the
            model has several encoders, the prefix is none, or ``into`` does not have the adapted layers.
        NonFiniteError: a parameter of adapters or head holds NaN or an infinity.
        AdapterFileError: the folder holds other things or cannot be written.

    Warns:
        UserWarning: the model's head was not written: it is of another kind, or for a model with another prefix; the
            adapters came with weights that ``from_peft`` has written into the backbone, which no LoRA's folder holds.
    """
    folder = as_folder(directory)
    with unwrapped(model):
        place = place_of(model, prefix, into)
        layers = {path: layer for path, layer in adapted_layers(model.backbone).items() if layer.rank > 0}
        require_plain(model, layers)
        with readable(folder):
            require_free(folder)
        made = contents(model, {path: as_lora(layer) for path, layer in layers.items()}, model.head, place)
        warn_of_base(Marks.of(model).base)
        if made.head == "left out":
            warn_of_head(model.head, place.prefix)
        replace_folder(folder, made.files)
