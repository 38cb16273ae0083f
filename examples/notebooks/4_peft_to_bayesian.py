# ruff: noqa
# %% [markdown]
# # From a PEFT LoRA to a Bayesian one
#
# PEFT trains a LoRA; the library reads its folder, and training-free Bayesianization (TFB, arXiv 2412.05723) puts the
# largest Gaussian noise around it that a few anchor texts tolerate.
#
# The task: which package of the standard library does a docstring come from?

# %%
import tempfile
import warnings

warnings.filterwarnings("ignore")
import matplotlib.pyplot as plt
import peft
import torch
from torch import nn

from bayes_adapters import Batch, Categorical, predict
from bayes_adapters.analysis.metrics import accuracy, ece, nll
from bayes_adapters.backbones import text_backbone
from bayes_adapters.files.peft import from_peft
from bayes_adapters.guides import Delta
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from examples.studies.training_free import docstrings

PACKAGES = ("asyncio", "email", "logging", "unittest")
texts, labels = [], []
for number, package in enumerate(PACKAGES):
    own = [text for text in docstrings(package) if len(text.split()) < 16][:40]
    texts += own
    labels += [number] * len(own)
order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
train, test = order[:60], order[60:120]
backbone, tokenizer = text_backbone()


def batch(rows):
    tokens = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, truncation=True, max_length=24)
    return Batch(dict(tokens), torch.tensor([labels[i] for i in rows]))


print(len(train), "docstrings to train on,", len(test), "to test")

# %% [markdown]
# ## PEFT trains
# A plain PEFT model with a head of its own, a plain loop.

# %%
torch.manual_seed(0)
lora = peft.get_peft_model(backbone, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
head = nn.Linear(384, len(PACKAGES))
optimizer = torch.optim.AdamW([*(p for p in lora.parameters() if p.requires_grad), *head.parameters()], lr=1e-3)
data = batch(train)
for step in range(25):
    hidden = lora(**data.inputs).last_hidden_state
    weight = data.inputs["attention_mask"][..., None].float()
    loss = nn.functional.cross_entropy(head((hidden * weight).sum(1) / weight.sum(1)), data.targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
folder = tempfile.mkdtemp()
lora.save_pretrained(folder)
print(f"PEFT's training loss: {loss.item():.3f} nats")

# %% [markdown]
# ## The library reads
# The adapters are the same numbers; the head was ours, so it is copied by hand. Two steps on, the model is a Pyro model.

# %%
model = from_peft(folder, text_backbone()[0], Categorical(len(PACKAGES)))
model.head.load_state_dict(head.state_dict())
guide = Delta(model)
with torch.no_grad():
    lora.eval()
    hidden = lora(**data.inputs).last_hidden_state
    ours = predict(model, guide, data, num_samples=1)
    theirs = head((hidden * weight).sum(1) / weight.sum(1)).softmax(-1)
print(f"largest difference to PEFT's probabilities: {(ours.probs - theirs).abs().max():.1e}")

# %% [markdown]
# ## Noise around it
# The tolerance says how much the anchors' loss may grow, as a share of the entropy of their mean prediction. A third of
# the training texts, unlabelled, are the anchors.

# %%
answers, found = {"as PEFT trained it": predict(model, guide, batch(test))}, {}
for tolerance in (0.05, 0.5):
    bayesian, noisy, log = bayesianise(
        model, guide, batch(train[:20]), tolerance=tolerance, num_samples=4, iterations=5
    )
    found[tolerance] = log.scale
    answers[f"tolerance {tolerance:g}"] = predict(bayesian, noisy, batch(test), num_samples=8)
targets = batch(test).targets
for title, answer in answers.items():
    print(
        f"{title:20} accuracy {accuracy(answer.probs, targets):.3f}  NLL {nll(answer.probs, targets):.3f}  "
        f"ECE {ece(answer.probs, targets):.3f}  epistemic {answer.epistemic.mean():.4f} nats"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for title, answer in answers.items():
    confidence = answer.probs.max(-1).values.sort().values
    axes[0].plot(confidence, torch.arange(len(confidence)) / len(confidence), label=title)
axes[0].set(xlabel="confidence", ylabel="share of test texts below", xlim=(0.25, 1))
axes[0].legend(frameon=False, fontsize=8)
axes[1].semilogx([p.scale for p in log.points], [p.value for p in log.points], "o", label="tried")
axes[1].axhline(log.baseline, color="0.6", lw=1, ls="--", label="without noise")
for tolerance, scale in found.items():
    axes[1].axvline(scale, color="tab:green", lw=1, ls=":")
axes[1].set(xlabel="noise σ_q (dotted: chosen at each tolerance)", ylabel="anchors' NLL (nats)")
axes[1].xaxis.set_minor_formatter(plt.NullFormatter())
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Noise makes every answer less sure. That helps a LoRA that is too sure of itself; compare the NLL and ECE above to see
# whether this one was. With `relative_to="loss"`, as published, the tolerance is a part of the anchors' loss, and the surer
# the LoRA the less noise it may add. The curve on the right is worth a look before a value is chosen.
