# ruff: noqa
# %% [markdown]
# # Your own guide, your own prior
#
# A guide is one class with six members. A prior is any Pyro distribution, or a function of a site's name and shape.

# %%
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import kl_divergence

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, Categorical, Granularity, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import MeanField
from bayes_adapters.inference.guide import site_key
from bayes_adapters.models import StochasticCore
from bayes_adapters.sites import Part, SiteCall
from bayes_adapters.training import fit

praise = ["what a joy", "a lovely day", "the best soup in town", "so kind and quick"]
blame = ["how sad", "an awful night", "the soup was cold", "rude and slow"]
asked = ["such a kind waiter", "a sad and cold place", "the soup", "kind but slow", "the bus stop"]

# %% [markdown]
# ## The guide
# `q(E_ij) = N(M_ij, s_i²)`: one standard deviation per row of a core instead of one per entry.


# %%
class RowScale(AdapterGuide):
    """``q(E_ij) = N(M_ij, s_i²)``: free means, one standard deviation per row of the core."""

    name: ClassVar[str] = "row_scale"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL, Granularity.TOKEN})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.CORE})

    def __init__(self, model: AdapterModel, *, init_scale: float = 0.1) -> None:
        super().__init__(model)
        self.init_scale = init_scale
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        for site in model.sites:
            start = model.start(site)
            self.loc[site_key(site)] = nn.Parameter(start)
            self.log_scale[site_key(site)] = nn.Parameter(torch.full((*start.shape[:-1], 1), init_scale).log())

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        key = site_key(call.site)
        scale = self.log_scale[key].exp().expand_as(self.loc[key])
        return dist.Normal(self.loc[key], scale).to_event(len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {"init_scale": self.init_scale}


# %% [markdown]
# ## The prior
# Layers near the output may move more than layers near the input: a scale that grows with the layer's number. The callable gets
# a site's name and the shape of one draw; a global site holds all layers of a group, (L, r, r), here query and value of six
# layers.


# %%
def growing(name: str, shape: tuple[int, ...]) -> Any:
    layers = shape[0]
    scale = torch.linspace(0.05, 0.4, layers).reshape(-1, 1, 1).expand(shape)
    return dist.Normal(torch.zeros(shape), scale)


def pair(prior, family):
    torch.manual_seed(0)
    backbone, tokenizer = text_backbone()
    tokens = tokenizer([*praise, *blame, *asked], return_tensors="pt", padding=True)
    model = StochasticCore(
        backbone, Categorical(2), targets=["query", "value"], rank=8, granularity="global", num_data=8, prior=prior
    )
    batches = (
        Batch({k: v[:8] for k, v in tokens.items()}, torch.tensor([1] * 4 + [0] * 4)),
        Batch({k: v[8:] for k, v in tokens.items()}),
    )
    return model, family(model), *batches


model, guide, train, _ = pair(growing, RowScale)
for site in model.sites:
    print(site.name, "layers", len(site.layers), "event", tuple(site.event))

# %% [markdown]
# ## Check the KL by hand, then train
# The library's KL is per data set, divided by N = 8.

# %%
by_hand = sum(
    kl_divergence(
        torch.distributions.Normal(guide.loc[key], guide.log_scale[key].exp().expand_as(guide.loc[key])),
        torch.distributions.Normal(0.0, growing("", tuple(guide.loc[key].shape)).scale),
    ).sum()
    for key in guide.loc
)
print(f"KL / 8 by hand {by_hand.item() / 8:.4f}, the library's {ELBO(model, guide).terms(train).kl.item():.4f} nats")

# %%
runs = {
    "mean field, N(0, .2²)": (None, MeanField),
    "row scale, N(0, .2²)": (None, RowScale),
    "row scale, growing prior": (growing, RowScale),
}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
for (title, (prior, family)), marker in zip(runs.items(), ("o", "x", "^")):
    model, guide, train, unlabelled = pair(prior, family)
    result = fit(model, guide, train, epochs=30, progress=False)
    answer = predict(model, guide, unlabelled, num_samples=64)
    axes[0].plot([log["loss"] for log in result.history], marker=marker, markevery=3, label=title)
    axes[1].plot(asked, answer.epistemic, marker, ls="", label=title, alpha=0.8)
    numbers = sum(p.numel() for p in guide.parameters())
    print(f"{title:26} {numbers:5} numbers in the guide, loss {result.history[-1]['loss']:.2f} nats per text")
axes[0].set(xlabel="epoch", ylabel="negative ELBO (nats per text)")
axes[0].legend(frameon=False, fontsize=8)
axes[1].set(ylabel="epistemic part (nats)")
axes[1].tick_params(axis="x", rotation=20)
plt.show()

# %% [markdown]
# To use the guide from a package, so that `save` and `load` find it, register it in the entry point group
# `bayes_adapters.guides`. The page *Extending* of the documentation lists what every member means.
