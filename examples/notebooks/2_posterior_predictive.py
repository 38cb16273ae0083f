# ruff: noqa
# %% [markdown]
# # Posterior-predictive analysis
#
# How long does it take to say a script? The targets are log seconds of real studio recordings (telephone prompts,
# CC BY-SA), the input is the script alone. We look at draws, calibration, the two parts of the uncertainty, and at
# posterior-predictive checks with ArviZ.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)
import arviz as az
import matplotlib.pyplot as plt
import torch

from bayes_adapters import Batch, HeteroscedasticGaussian, predict
from bayes_adapters.analysis.arviz import to_arviz
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import MeanField
from bayes_adapters.models import StochasticCore
from bayes_adapters.training import batches, fit
from examples.studies.verify_prompts.prompts import load_prompts

prompts = load_prompts(("en",))
order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
prompts = [prompts[i] for i in order[:200]]
seconds = torch.tensor([p.seconds for p in prompts]).log()
centre, spread = seconds[:160].mean(), seconds[:160].std()
targets = (seconds - centre) / spread  # standardise: the head starts near 0 ± 1
print(len(prompts), "recordings,", round(float(centre.exp()), 2), "s typically")

# %% [markdown]
# A posterior over weights, a Gaussian likelihood whose scale depends on the script, 160 scripts to train on.

# %%
torch.manual_seed(0)
backbone, tokenizer = text_backbone()
tokens = tokenizer([p.text for p in prompts], return_tensors="pt", padding=True, truncation=True, max_length=24)
train = Batch({k: v[:160] for k, v in tokens.items()}, targets[:160])
test = Batch({k: v[160:] for k, v in tokens.items()}, targets[160:])
model = StochasticCore(
    backbone, HeteroscedasticGaussian(), targets=["query", "value"], rank=8, granularity="global", num_data=160
)
guide = MeanField(model)
result = fit(model, guide, batches(train, 16), epochs=8, kl_weight=0.1, progress=False)
print(f"nll {result.history[0]['nll']:.3f} → {result.history[-1]['nll']:.3f} nats, kl {result.history[-1]['kl']:.3f}")

# %% [markdown]
# ## Draws
# Each draw of the weights is one function: its predictions move together. Eight draws over the test scripts, sorted by
# length:

# %%
answer = predict(model, guide, test, num_samples=32, return_samples=True)
length = torch.tensor([len(p.text) for p in prompts[160:]])
by_length = length.argsort()
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for draw in answer.samples[:8]:
    axes.plot(length[by_length], draw[by_length], ".", ms=3, alpha=0.7)
axes.plot(length, test.targets, "k.", ms=4, label="measured")
axes.set(xlabel="characters of the script", ylabel="log seconds, standardised")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Calibration
# How many of the measured durations lie in the central interval that should hold a given share?

# %%
z = (test.targets - answer.mean) / answer.variance.sqrt()
shares = torch.linspace(0.05, 0.95, 19)
wanted = torch.distributions.Normal(0.0, 1.0).icdf((1 + shares) / 2)
covered = (z.abs()[:, None] < wanted).float().mean(0)
figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
axes.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
axes.plot(shares, covered, "o-", ms=4)
axes.set(xlabel="central interval", ylabel="share of test recordings in it", xlim=(0, 1), ylim=(0, 1))
plt.show()
print(
    f"test NLL {-answer.log_density.mean():.3f} nats; 90 % intervals cover {float((z.abs() < 1.645).float().mean()):.2f}"
)

# %% [markdown]
# ## Aleatoric and epistemic
# For a regression the two are entropies of Gaussians, and can be negative; the epistemic part is a difference, and cannot.
# Texts unlike the training scripts: docstrings, and nonsense.

# %%
import textwrap

others = [
    textwrap.shorten(d.__doc__.strip(), 90) for d in (dict.fromkeys, str.splitlines, bytes.hex, list.sort, int.to_bytes)
]
nonsense = ["qzx wvb kkp", "9 7 9 7 9 7 9 7", "( ) [ ] { }", "aaaaaaaaaaaaaaaa", "the the the the the"]
groups = {"test scripts": answer}
for name, texts in (("docstrings", others), ("nonsense", nonsense)):
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=24)
    groups[name] = predict(model, guide, Batch(dict(inputs)), num_samples=32)
figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
for (name, part), marker in zip(groups.items(), "o^s"):
    axes.plot(part.aleatoric, part.epistemic, marker, ms=5, alpha=0.7, label=name)
    print(f"{name:13} aleatoric {part.aleatoric.mean():+.2f}, epistemic {part.epistemic.mean():.3f} nats")
axes.set(xlabel="aleatoric (nats)", ylabel="epistemic (nats)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# It is the *aleatoric* part that rises on unlike texts: the likelihood's own scale depends on the script and grows with its
# length. The draws do not disagree more there. A posterior over weights does not by itself know what is far away.

# %% [markdown]
# ## ArviZ
# `to_arviz` keeps draws, log-likelihoods and targets; from there on it is ArviZ's functions.

# %%
data = to_arviz(model, guide, test, num_samples=50)
data

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
az.plot_ppc(data, num_pp_samples=50, ax=axes[0], random_seed=0)
az.plot_bpv(data, kind="p_value", ax=axes[1])
plt.show()
print(az.loo(data, reff=1.0))  # the draws are independent

# %% [markdown]
# `loo` takes the draws for draws of the exact posterior, and a guide is an approximation: read it as a diagnostic. A large
# Pareto k marks a recording that few draws explain much better than the others. Here half of the recordings are above the
# limit for 50 draws, so `elpd_loo` is not to be trusted: take more draws, or the held-out NLL above.
