"""The model card of draws as LoRA folders: what they are, how a server serves them, how to average."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from torch import nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.files._peft_contents import Contents
from bayes_adapters.files._peft_prefix import Place
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_READS = {
    Pooling.MEAN: "(states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # the mean over real tokens",
    Pooling.CLS: "states[range(len(states)), mask.argmax(1)]  # the first real token",
    Pooling.LAST: "states[range(len(states)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]  # the last real token",
    Pooling.POOLER: "output.pooler_output",
    Pooling.NONE: "states",
}
"""What a head reads → the code of it."""
_PROBABILITIES = {
    "bernoulli": "sigmoid()",
    "multi_label": "sigmoid()",
    "categorical": "softmax(-1)",
    "tagging": "softmax(-1)",
}
"""Name of a likelihood → what makes probabilities of outputs."""


def card(
    model: AdapterModel,
    guide: AdapterGuide,
    names: Sequence[str],
    seed: int,
    place: Place,
    head: nn.Module,
    written: Contents,
) -> str:
    """Return the text of ``README.md`` beside the folders ``names``."""
    backbone = model.backbone
    found = str(getattr(backbone.config, "_name_or_path", "") or "")
    base = found if _HUB_NAME.fullmatch(found) else None  # a folder says nothing elsewhere
    rank = max(layer.rank for layer in adapted_layers(backbone).values())
    where = f"inside a model whose paths begin with `{place.prefix}`" if place.prefix else "the plain backbone"
    first, last = names[0], names[-1]
    tags = ", ".join(["bayes-adapters", "bayesian", "lora", model.structure])
    server = " ".join(f"{name}=./{name}" for name in names[:2])
    return f"""---
library_name: peft
{f"base_model: {base}{chr(10)}" if base else ""}tags: [{tags}]
---

# {len(names)} draws of a Bayesian LoRA

Each of the folders `{first}` … `{last}` is a plain LoRA of PEFT: one draw of the adapters' weights from a posterior.
They were written by bayes-adapters.

| | |
|---|---|
| base model | {type(backbone).__name__}{f" `{base}`" if base else ""}, {where} |
| structure | `{model.structure}`, rank {rank} |
| posterior | `{guide.name}` {json.dumps(guide.config(), default=str)}, temperature {guide.posterior_temperature:g} |
| draws | {len(names)}, seed {seed}: draw s is that of `predict(…, seed={seed})` |
| likelihood | `{model.likelihood.name}` |
| head | {_head(head, written)} |

## Averaging

The answer is the mean of the draws' **probabilities**, not of their logits: p̄(y | x) = (1/S) Σ_s p(y | x, W_s).
Its entropy less the mean entropy of the draws is how far they disagree (epistemic uncertainty). `base` is the model
named above, and `inputs` what its tokenizer returns:

```python
{_recipe(model, names, place, written)}
```

## Serving

A server of many LoRAs holds the base once, and a request names its draw as the model. With vLLM, of a language model:

```
vllm serve BASE --enable-lora --max-loras {len(names)} --max-lora-rank {_at_least(rank)} --lora-modules {server} …
```

Send a request to every draw and average the probabilities of the answers. Text that is written token by token under one
draw is a sample of that draw: vote over the texts, or average the probabilities of given answers.
"""


def _recipe(model: AdapterModel, names: Sequence[str], place: Place, written: Contents) -> str:
    """Return code that averages the draws with PEFT alone."""
    beside = written.head == "beside"
    called = f"net.get_base_model().{place.prefix[:-1]}" if beside and place.prefix else "net"
    to_probabilities = _PROBABILITIES.get(model.likelihood.name)
    made = f"logits.{to_probabilities}" if to_probabilities else "logits  # or what the likelihood makes of them"
    lines = [
        "import torch",
        "from peft import PeftModel",
        *(["from safetensors.torch import load_file"] if beside else []),
        "",
        f'names = [f"draw-{{s:0{len(names[0]) - 5}d}}" for s in range({len(names)})]',
        "net = PeftModel.from_pretrained(base, names[0], adapter_name=names[0]).eval()",
        "for name in names[1:]:",
        "    net.load_adapter(name, name)",
        "total = 0.0",
        "for name in names:",
        "    net.set_adapter(name)",
        "    with torch.no_grad():",
        f"        output = {called}(**inputs)",
    ]
    if beside:
        lines += [
            '    mask, states = inputs["attention_mask"], output.last_hidden_state',
            f"    features = {_READS[model.head.pooling]}",
            '    head = load_file(f"{name}/bayes_adapters_head.safetensors")',
            '    logits = features @ head["weight"].T + head["bias"]',
        ]
    else:
        lines.append("    logits = output.logits")
    return "\n".join([*lines, f"    total = total + {made}", "probs = total / len(names)"])


def _at_least(rank: int) -> int:
    """Return the next of the server's ranks, which are powers of two from 8."""
    return max(8, 1 << (rank - 1).bit_length())


def _head(head: nn.Module, written: Contents) -> str:
    if not any(True for _ in head.parameters()):
        return "the base model's own output layer"
    if written.head == "inside":
        return "in every folder, under `modules_to_save`: PEFT loads it, servers of language models do not"
    if written.head == "beside":
        return "in every folder, beside the adapter: `bayes_adapters_head.safetensors`, which PEFT does not read"
    return f"in no folder: a {type(head).__name__}, which PEFT has none like"
