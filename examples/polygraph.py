"""A posterior's scores as estimators of LM-Polygraph, beside its own, on the same texts.

    python -m examples.polygraph --questions 40      (after pip install lm-polygraph)

SmolLM2 with a Bayesian adapter answers sums; printed is how well each estimator tells wrong answers from right ones.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.backbones import language_model
from bayes_adapters.data.texts import completions, prompts
from bayes_adapters.generation import Generation, generate, scores, semantic_entropy
from examples.agent import calculator, questions, trained

PREFIX = "posterior_"
OWN = ("MaximumSequenceProbability", "Perplexity", "LexicalSimilarity", "SemanticEntropy")


def statistics(said: Generation, each: Generation) -> dict[str, Any]:
    """Return what estimators look at, by LM-Polygraph's names, and the posterior's scores by names of their own."""
    classes = [semantic_entropy(own, lambda a, b: a.strip() == b.strip()).clusters for own in each.hypotheses()]
    which = [{number: k for k, own in enumerate(found) for number in own} for found in classes]
    return {
        "greedy_log_likelihoods": [row[kept].tolist() for row, kept in zip(said.log_probs, said.written, strict=True)],
        "sample_texts": each.hypotheses(),
        "sample_log_probs": each.sequence_log_prob.reshape(each.num_samples, -1).T.tolist(),
        "semantic_classes_entail": {"class_to_sample": classes, "sample_to_class": which},
        **{PREFIX + name: value.numpy() for name, value in scores(said, each).items()},
    }


def posterior_estimators(base: Any, names: list[str]) -> list[Any]:
    """Return one estimator per score; ``base`` is LM-Polygraph's ``Estimator``."""

    class PosteriorScore(base):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__([PREFIX + name], "sequence")

        def __str__(self) -> str:
            return "".join(part.capitalize() for part in self.stats_dependencies[0].split("_"))

        def __call__(self, stats: dict[str, Any]) -> np.ndarray:
            return np.asarray(stats[self.stats_dependencies[0]], dtype=np.float64)

    return [PosteriorScore(name) for name in names]


def main() -> int:
    """Train briefly, write, and score."""
    from lm_polygraph import estimators

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--steps", 20), ("--questions", 40)):
        parser.add_argument(name, type=int, default=default)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net, tokenizer = language_model()
    tokenizer.padding_side, asked = "left", questions(arguments.questions, 1)
    learnt = [question for question in questions(8 * arguments.steps, 0) if question not in asked]
    model, guide = trained("blob", net, completions(tokenizer, learnt, list(map(calculator, learnt)), longest=64))
    batch, options = prompts(tokenizer, asked, longest=64), {"tokenizer": tokenizer, "max_new_tokens": 5}
    said = generate(model, guide, batch, num_samples=5, **options)
    each = generate(model, guide, batch, num_samples=5, writing="each", do_sample=True, top_k=0, **options)
    wrong = torch.tensor([t.strip() != calculator(q) for t, q in zip(said.texts or (), asked, strict=True)])
    own: list[Any] = [getattr(estimators, name)() for name in OWN]
    print(f"{int(wrong.sum())} of {len(asked)} answers are wrong; AUROC of each estimator:")
    for estimator in own + posterior_estimators(estimators.Estimator, list(scores(said, each))):
        print(f"{estimator!s:28} {auroc(torch.as_tensor(estimator(statistics(said, each))), wrong):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
