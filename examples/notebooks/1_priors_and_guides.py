# ruff: noqa
# %% [markdown]
# # Swap the prior and the guide
#
# A model says what is random and under which prior; a guide says what the posterior looks like. Both are arguments. Here
# one backbone, eight labelled sentences, and four pairs.

# %%
import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch

from bayes_adapters import Batch, Categorical, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import identity_normal
from bayes_adapters.training import fit

praise = ["what a joy", "a lovely day", "the best soup in town", "so kind and quick"]
blame = ["how sad", "an awful night", "the soup was cold", "rude and slow"]
asked = ["such a kind waiter", "a sad and cold place", "the soup", "kind but slow", "the bus stop"]

# %% [markdown]
# `granularity` says for what one draw is shared: for the whole data set (`"global"`, a posterior over weights), or a token.
# `N(I, .2²)` says "plain LoRA, plus or minus something"; `N(0, .2²)` says "no adaptation, plus or minus something".

# %%
pairs = {
    "N(0, .2²), weights": (None, MeanField, "global"),
    "N(I, .2²), weights": (identity_normal(8), MeanField, "global"),
    "Laplace(0, .1), point": (dist.Laplace(0.0, 0.1), Delta, "global"),
    "N(I, .2²), per token": (identity_normal(8), Contextual, "token"),
}
answers = {}
for title, (prior, family, granularity) in pairs.items():
    torch.manual_seed(0)
    backbone, tokenizer = text_backbone()
    tokens = tokenizer([*praise, *blame, *asked], return_tensors="pt", padding=True)
    train = Batch({k: v[:8] for k, v in tokens.items()}, torch.tensor([1] * 4 + [0] * 4))
    options = {"num_data": 8} if granularity == "global" else {}
    model = StochasticCore(
        backbone, Categorical(2), targets=["query", "value"], rank=8, granularity=granularity, prior=prior, **options
    )
    guide = family(model)
    result = fit(model, guide, train, epochs=30, progress=False)
    answers[title] = predict(model, guide, Batch({k: v[8:] for k, v in tokens.items()}), num_samples=64)
    print(f"{title:22} nll {result.history[-1]['nll']:.3f}, kl {result.history[-1]['kl']:.3f} nats per text")

# %% [markdown]
# Probabilities of praise, and the part of the uncertainty that comes from disagreement between draws:

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
height = 0.8 / len(pairs)
for i, (title, answer) in enumerate(answers.items()):
    places = [row + (i - 1.5) * height for row in range(len(asked))]
    axes[0].barh(places, answer.probs[:, 1], height, label=title)
    axes[1].barh(places, answer.epistemic, height)
axes[0].axvline(0.5, color="0.5", lw=1, ls="--")
axes[0].set(xlabel="p(praise)", xlim=(0, 1))
axes[1].set(xlabel="epistemic part (nats)")
axes[0].set_yticks(range(len(asked)), asked)
axes[0].invert_yaxis()
figure.legend(loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# * The point estimate has no epistemic part: there is one network, and nothing to disagree with.
# * A posterior over weights disagrees where eight sentences do not decide.
# * A posterior per token is random in every token of its own; over a sentence these draws average out, and the epistemic
#   part is small. Which one you want is a question about your problem, not about the code: it is one argument.
