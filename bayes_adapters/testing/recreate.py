"""Make reference posteriors anew: ``python -m bayes_adapters.testing.recreate --out FOLDER [NAME …]``.

Draws are by NUTS, four chains from draws of the prior. log p(y) is estimated by importance sampling: draws u of a
Student's t with five degrees of freedom at the mean of the posterior, with 1.2 times its covariance, and
``log p̂(y) = log (1/M) Σ_m p(y, u_m) / t(u_m)``; its standard error is ``sd(r) / (r̄ √M)`` of the ratios r.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.testing.case import seeded
from bayes_adapters.testing.entries import joined, labels, layout, log_density
from bayes_adapters.testing.targets import TARGETS, Target

LEVELS = [k / 40 for k in range(1, 40)]
STORED, PROBES, DIGITS = 256, 3, 6
"""Draws that are kept, how many of them have their log density stored, and significant digits."""
_DEPTH = 8


@exclusive()
def record(
    target: Target,
    *,
    draws: int = 250,
    warmup: int = 150,
    chains: int = 4,
    target_accept: float = 0.9,
    proposals: int = 1000,
    compiled: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what is stored of a target's posterior; plain numbers and texts.

    Args:
        target: one of :data:`TARGETS`, or another model whose random parts are weights.
        draws: of each chain.
        warmup: steps of each chain that are thrown away.
        chains: run one after another.
        target_accept: mean acceptance that the step size is adapted to.
        proposals: M, for the evidence.
        compiled: whether the density is compiled by ``torch.jit``, some three times as fast.
        seed: of everything.
    """
    model, batch = target.make_model(), target.make_batch()
    found, divergences = [], 0
    for chain in range(chains):
        with seeded(seed + chain), evaluating(model), warnings.catch_warnings():
            # Compiled, since nearly all of the time of so small a model is Python's; the draws are the same. torch
            # warns that a later version will compile in another way, and of constants, such as sizes.
            warnings.simplefilter("ignore")
            options = {"jit_compile": compiled, "ignore_jit_warnings": True}
            kernel = NUTS(model, max_tree_depth=_DEPTH, target_accept_prob=target_accept, **options)
            run = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            run.run(batch)
        divergences += len(run.diagnostics()["divergences"]["chain 0"])
        samples = run.get_samples()
        found.append(joined(model, {entry.name: samples[entry.name] for entry in layout(model)}))
    each = torch.stack(found)
    if target.mirrored:  # −w is as likely as w: a sign per draw leaves the posterior as it is, and joins its modes
        sign = torch.randint(0, 2, (chains, draws, 1), generator=torch.Generator().manual_seed(seed))
        each = each * (2.0 * sign - 1.0)
    flat = each.flatten(0, 1)
    mean, covariance = flat.mean(0), flat.T.cov()
    kept = _rounded(flat[torch.linspace(0, len(flat) - 1, min(STORED, len(flat))).long()])
    evidence, error = _evidence(target, mean, covariance, proposals, seed)
    settings = {"draws": draws, "warmup": warmup, "chains": chains, "max_tree_depth": _DEPTH, "seed": seed}
    return {
        "name": target.name,
        "description": target.description,
        "entries": labels(model),
        "mean": _rounded(mean),
        "sd": _rounded(flat.std(0)),
        "covariance": _rounded(covariance),
        "levels": LEVELS,
        "quantiles": _rounded(flat.quantile(torch.tensor(LEVELS, dtype=flat.dtype), 0)),
        "log_evidence": {
            "value": _rounded(torch.tensor(evidence)),
            "standard_error": _rounded(torch.tensor(error)),
            "method": f"importance sampling, {proposals} draws of a Student's t about the posterior",
        },
        "sampler": {
            "name": "NUTS, Pyro",
            **settings,
            "target_accept": target_accept,
            "mirrored": target.mirrored,
            "r_hat": _rounded(split_gelman_rubin(each, 0, 1)),
            "effective_sample_size": _rounded(effective_sample_size(each, 0, 1)),
            "divergences": divergences,
            "versions": f"Pyro {pyro.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        },
        "log_density": [
            _rounded(torch.tensor(log_density(model, batch, torch.tensor(u).double()))) for u in kept[:PROBES]
        ],
        "draws": kept,
    }


def _evidence(target: Target, mean: Tensor, covariance: Tensor, proposals: int, seed: int) -> tuple[float, float]:
    """Return log p̂(y) and its standard error, nats."""
    model, batch = target.make_model(), target.make_batch()
    tril = torch.linalg.cholesky(1.2 * covariance)
    t = pyro.distributions.MultivariateStudentT(torch.tensor(5.0, dtype=mean.dtype), mean, tril)
    with seeded(seed + 100):
        points: Float[Tensor, "M D"] = t.sample((proposals,))
    joint = torch.tensor([log_density(model, batch, u) for u in points], dtype=mean.dtype)
    logs = joint - t.log_prob(points)
    ratios = (logs - logs.max()).exp()
    value = logs.max() + ratios.mean().log()
    return float(value), float(ratios.std() / ratios.mean() / proposals**0.5)


def _rounded(values: Tensor) -> Any:
    """Return nested lists of numbers with :data:`DIGITS` significant digits."""
    if values.dim():
        return [_rounded(value) for value in values]
    return float(f"{float(values):.{DIGITS}g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m bayes_adapters.testing.recreate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}; none means all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "references", help="folder for the files")
    parser.add_argument("--draws", type=int, default=250, help="of each chain")
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--target-accept", type=float, default=0.9)
    parser.add_argument("--proposals", type=int, default=1000, help="for the evidence")
    parser.add_argument("--plain", dest="compiled", action="store_false", help="do not compile the density")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    names, out = options.pop("names") or list(TARGETS), options.pop("out")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target is called {unknown[0]!r}; there are {', '.join(TARGETS)}.")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = record(TARGETS[name], **options)
        lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]
        (out / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        worst, least = max(found["sampler"]["r_hat"]), min(found["sampler"]["effective_sample_size"])
        text = f"R-hat {worst:.3f}, effective draws {least:.0f}, divergences {found['sampler']['divergences']}"
        print(f"{name}: {text}, log p(y) {found['log_evidence']['value']}")  # noqa: T201 -- a command's output
    return 0


if __name__ == "__main__":
    sys.exit(main())
