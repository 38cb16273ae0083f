"""The model card of draws as LoRA folders: what they are, how a server serves them, how to average."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from torch import nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.files._peft_contents import Contents
from bayes_adapters.files._peft_prefix import Place
from bayes_adapters.heads import LinearHead
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_READS = {
    Pooling.MEAN: "the mean of the last hidden states over real tokens",
    Pooling.CLS: "the last hidden state of the first real token",
    Pooling.LAST: "the last hidden state of the last real token",
    Pooling.POOLER: "the backbone's `pooler_output`",
    Pooling.NONE: "the last hidden state of each token",
}


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
| head | {_head(head, written)} |

## Averaging

The answer is the mean of the draws' **probabilities**, not of their logits: p̄(y | x) = (1/S) Σ_s p(y | x, W_s).
Its entropy less the mean entropy of the draws is how far they disagree (epistemic uncertainty).

```python
from peft import PeftModel

net = PeftModel.from_pretrained(base, "{first}", adapter_name="{first}")  # base: the model named above
names = [f"draw-{{s:0{len(first) - 5}d}}" for s in range({len(names)})]
for name in names[1:]:
    net.load_adapter(name, name)
total = 0.0
for name in names:
    net.set_adapter(name)
    total = total + net(**inputs).logits.softmax(-1)
probs = total / len(names)
```

## Serving

A server of many LoRAs holds the base once, and a request names its draw as the model. With vLLM:

```
vllm serve BASE --enable-lora --max-loras {len(names)} --max-lora-rank {max(rank, 8)} --lora-modules {server} …
```

Send a request to every draw and average the probabilities of the answers. Text that is written token by token under one
draw is a sample of that draw: vote over the texts, or average the probabilities of given answers.
"""


def _head(head: nn.Module, written: Contents) -> str:
    if written.head == "inside":
        return "in every folder, under `modules_to_save`; PEFT loads it with the adapter"
    if written.head == "beside" and isinstance(head, LinearHead):
        return (
            "in every folder, beside the adapter: `bayes_adapters_head.safetensors` holds `weight` W and `bias` b; the "
            f"outputs are W h + b, h being {_READS[head.pooling]}. PEFT does not read it"
        )
    return f"in no folder: a {type(head).__name__}, which PEFT has none like"
