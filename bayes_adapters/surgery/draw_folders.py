"""Draws of a posterior over weights as plain LoRA folders of PEFT: any server of many LoRAs serves the ensemble."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.errors import integer, whole_number
from bayes_adapters.files._file_checks import unwritable
from bayes_adapters.files._peft_checks import require_one_backbone
from bayes_adapters.files._peft_contents import Contents, contents
from bayes_adapters.files._peft_prefix import place_of
from bayes_adapters.files._peft_write import replace_folder
from bayes_adapters.files._regular import as_folder, readable
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Part
from bayes_adapters.surgery._checks import require_any_rank, require_plain_model
from bayes_adapters.surgery._draw_folder_checks import (
    CARD,
    require_drawable_head,
    require_drawn_weights,
    require_new,
    require_random,
)
from bayes_adapters.surgery._draws_card import card
from bayes_adapters.surgery.export import lora_factors

_WEIGHT, _BIAS = "head.weight", "head.bias"


@torch.no_grad()
def draws_to_peft(
    directory: str | Path,
    model: AdapterModel,
    guide: AdapterGuide,
    *,
    num_samples: int = 16,
    seed: int = 0,
    prefix: str | None = None,
    into: nn.Module | None = None,
) -> list[Path]:
    """Write S draws from the posterior as S plain LoRA folders, ``draw-00``, ``draw-01``, …, and a model card.

    Folder s holds the plain LoRA ``h = W₀ x + (α/r) B_s A_s x`` of draw s of ``predict(…, seed=seed)``, up to rounding:
    ``A_s = E_s diag(g_s) A_s diag(m_s) / E[m]`` with whatever of it is random drawn, and the rest copied.
    ``PeftModel.from_pretrained(net, directory / "draw-00")`` loads it, without this library. The predictive is the mean
    of the S draws' **probabilities**, ``p̄(y | x) = (1/S) Σ_s p(y | x, W_s)``, not of their logits.

    A head of the task model's own is written into every folder, as :func:`bayes_adapters.files.peft.to_peft` does. Any
    other linear head, drawn with the adapters where it is random (``BayesianLinear``, ``JointLinear``), lies beside
    them in each folder, as ``bayes_adapters_head.safetensors``: W (K, d) and b (K,); the model card says what it reads.

    Args:
        directory: of the S folders; made when absent, and refused where it holds anything. The card is written last.
        model: its random parts are weights: A, B, cores, gates or masks, one draw for the whole data set.
        guide: made for it, of any family; its ``posterior_temperature`` counts.
        num_samples: S ≥ 1.
        seed: as in :func:`bayes_adapters.predict`.
        prefix: as for :func:`bayes_adapters.files.peft.to_peft`.
        into: the same.

    Returns:
        The folders, draw 0 first.

    Raises:
        ConfigError: a site has a draw for each example or token, so that no weights stand for a draw; nothing is
            random; the head is integrated out; the model is no LoRA on one backbone; or as ``to_peft``.
        NonFiniteError: a draw holds NaN or an infinity.
        AdapterFileError: the folder holds things, or cannot be written.

    Warns:
        UserWarning: the head is of another kind and is in no folder.

    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import build
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model, guide = build("blob", BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> [folder.name for folder in draws_to_peft(tempfile.mkdtemp(), model, guide, num_samples=2)]
    ['draw-00', 'draw-01']
    """
    folder = as_folder(directory)
    whole_number("num_samples", num_samples)
    require_pair(model, guide)
    integer("seed", seed)
    require_one_backbone(model)
    require_drawn_weights(model, guide)
    require_plain_model(model, random_head=True)
    require_drawable_head(model)
    require_random(model, guide)
    with readable(folder):
        require_new(folder)
    width = max(2, len(str(num_samples - 1)))
    folders = [folder / f"draw-{s:0{width}d}" for s in range(num_samples)]
    with unwrapped(model):
        for layer in adapted_layers(model.backbone).values():
            require_lora(layer)
        place = place_of(model, prefix, into)
        for s, own in enumerate(folders):
            values = weight_draw(model, guide, s, seed=seed)
            head = _head(model, values)
            written: Contents = contents(model, _factors(model, values), head, place)
            if s == 0 and written.head == "left out":
                warnings.warn(
                    f"The head is a {type(head).__name__}, which PEFT has none like, and is in no folder; "
                    "bayes_adapters.save keeps it.",
                    stacklevel=2,
                )
            replace_folder(own, written.files)
        text = card(model, guide, [path.name for path in folders], seed, place, head, written)
        try:
            replace_file(folder / CARD, text.encode())
        except OSError as error:
            raise unwritable(folder, error) from error
    return folders


def _factors(model: AdapterModel, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return path → A' and B' of the layers with a rank left, masks included."""
    factors = lora_factors(model, values)
    for site in model.sites:
        if site.part == Part.MASK:
            kept = values[site.name] / model.prior.of(site).mean.to(values[site.name])
            for path, mask in zip(site.layers, kept.reshape(len(site.layers), -1), strict=True):
                factors[path] = factors[path][0] * mask, factors[path][1]
    factors = {path: pair for path, pair in factors.items() if len(pair[0])}
    require_any_rank(factors)
    return factors


def _head(model: AdapterModel, values: Mapping[str, Tensor]) -> nn.Module:
    """Return the model's head, with the drawn weights where it is a random linear one."""
    if not model.random_head:
        return model.head
    head = LinearHead(model.head.pooling)
    weight = values[_WEIGHT].reshape(values[_WEIGHT].shape[-2:])
    bias = values[_BIAS].reshape(-1) if _BIAS in values else weight.new_zeros(len(weight))
    head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
    return head
