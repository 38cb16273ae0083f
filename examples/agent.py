"""An agent that adds, and hands a calculator the sums that it is unsure of, so that few of its answers are wrong.

    python -m examples.agent --risk 0.1 --questions 200

SmolLM2 learns the form, as a point LoRA and as BLoB. A ``Guard`` is calibrated on half of the held-out questions: at
most ``--risk`` of all answers are given and wrong. The other half says what that costs. ``--tiny``: a random Llama.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch

from bayes_adapters.analysis.metrics import aurc
from bayes_adapters.backbones import language_model
from bayes_adapters.data.texts import completions, prompts
from bayes_adapters.generation import Guard, generate
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit
from examples._tiny import tiny_language_model


def calculator(question: str) -> str:
    """The tool: add the two numbers of a question."""
    return str(sum(int(word) for word in question.rstrip("? Answer:").split() if word.isdigit()))


def questions(count: int, seed: int) -> list[str]:
    """Sums of numbers of one to three digits."""
    rng = random.Random(seed)
    pairs = [[rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2)] for _ in range(count)]
    return [f"What is {a} + {b}? Answer:" for a, b in pairs]


def trained(name: str, net: Any, data: Any) -> tuple[Any, Any]:
    """Return a system after one epoch of ``data``."""
    shape = {"targets": ["q_proj", "v_proj"], "head": LanguageModelHead(), "num_data": data.size}
    model, guide = build(name, net, NextToken(net.config.vocab_size), **shape)
    fit(model, guide, batches(data, 8), epochs=1, kl_weight=1e-2, recipe=None, progress=False,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3))  # fmt: skip
    return model, guide


def main() -> int:
    """Train, calibrate, and say what is answered, handed over and wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (("--steps", int, 40), ("--questions", int, 200), ("--risk", float, 0.1)):
        parser.add_argument(name, type=kind, default=default)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    asked, half = questions(arguments.questions // 2 * 2, 1), arguments.questions // 2
    learnt = [question for question in questions(8 * arguments.steps, 0) if question not in asked]
    for name, draws in (("lora", 1), ("blob", 5)):
        net, tokenizer = tiny_language_model() if arguments.tiny else language_model()
        tokenizer.padding_side, tools = "left", [calculator(question) for question in learnt]
        model, guide = trained(name, net, completions(tokenizer, learnt, tools, longest=64))
        options = {"num_samples": draws, "tokenizer": tokenizer, "max_new_tokens": 5}
        both = [prompts(tokenizer, some, longest=64) for some in (asked[:half], asked[half:])]
        said = [generate(model, guide, some, **options) for some in both]
        texts = [text.strip() for one in said for text in one.texts or ()]
        wrong = torch.tensor([text != calculator(q) for q, text in zip(asked, texts, strict=True)]).tensor_split(2)
        for part in ("total", "epistemic")[:draws]:
            guard = Guard.fit(said[0], wrong[0], risk=arguments.risk, part=part, beyond="tool")
            handed = torch.tensor([action == "tool" for action in guard(said[1])])
            given, share, alone = (float(some.float().mean()) for some in (wrong[1] & ~handed, handed, wrong[1]))
            print(f"{name} by {part}: {alone:.3f} wrong without a guard; {share:.3f} handed over, {given:.3f} wrong, "
                  f"{alone * (1 - share):.3f} at random; AURC {aurc(said[1].mean(part), wrong[1]):.3f}")  # fmt: skip
    for q, text, action in list(zip(asked[half:], texts[half:], guard(said[1]), strict=True))[:5]:
        print(f"{q} {calculator(q)}, by the tool" if action == "tool" else f"{q} {text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
