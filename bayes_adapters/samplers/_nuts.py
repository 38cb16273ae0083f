"""NUTS over the weights of a small adapter: the posterior itself, to hold approximations against."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import MCMC, NUTS

from bayes_adapters.data.batch import Batch
from bayes_adapters.guides import StoredDraws
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.samplers._checks import require_whole


@exclusive()
def nuts(
    model: AdapterModel,
    data: Batch,
    *,
    num_draws: int = 200,
    warmup: int = 200,
    chains: int = 1,
    seed: int = 0,
    max_tree_depth: int = 8,
    target_accept: float = 0.8,
) -> StoredDraws:
    """Draw the random weights of ``model`` from ``p(w | data)`` by Pyro's No-U-Turn sampler.

    Each draw takes up to 2^max_tree_depth gradients over all of the data: for some hundred weights and few examples.
    What is no random weight stays as it is; step size and a diagonal mass matrix are adapted during the warm-up.
    Gradients in float32: a chain that rejects much may need ``target_accept`` nearer 1.

    Args:
        model: its random parts are weights, on which the prior is positive everywhere.
        data: one batch of all ``num_data`` examples, with targets.
        num_draws: S of each chain.
        warmup: steps of each chain that are thrown away.
        chains: run one after another, each from a start of its own (a draw of the prior).
        seed: of starts and moves; torch's generator is left as it was.
        max_tree_depth: see above.
        target_accept: mean acceptance that the step size is adapted to.

    Returns:
        A guide that holds ``chains · num_draws`` draws, chain after chain.

    Raises:
        ConfigError: a site is drawn per token or example, the batch is not the whole data set, or a number is below 1.

    Source: Hoffman and Gelman 2014, arXiv 1111.4246.

    >>> from bayes_adapters.samplers import nuts
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, predict
    >>> from bayes_adapters.models import DiagonalCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> batch = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.tensor([0.0, 1.0] * 4))
    >>> model = DiagonalCore(BertModel(tiny), Bernoulli(), num_data=8, rank=2)
    >>> predict(model, nuts(model, batch, num_draws=4, warmup=2, max_tree_depth=2), batch, num_samples=4).num_samples
    4
    """
    require_whole(model, data, num_draws=num_draws, warmup=warmup, chains=chains, max_tree_depth=max_tree_depth)
    data = data.to(next(model.parameters()).device)
    found: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), evaluating(model):
        for chain in range(chains):
            torch.manual_seed(seed * 1_000_003 + chain)
            kernel = NUTS(model, max_tree_depth=max_tree_depth, target_accept_prob=target_accept)
            run = MCMC(kernel, num_samples=num_draws, warmup_steps=warmup, disable_progbar=True)
            run.run(data)
            found.append(run.get_samples())
    return StoredDraws.of(model, {site.name: torch.cat([c[site.name] for c in found]) for site in model.sites})
