"""Published systems by name: a model, a guide, their options, and how they were trained.

``build("c-lora", backbone, Categorical(2))`` gives model and guide; ``SYSTEMS["c-lora"].training`` says how the paper
trained them. A system is a row here and nothing else: any other pair of a model and a guide works as well. What begins
with a trained system is in :mod:`bayes_adapters.systems.procedures`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bayes_adapters import guides, models
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.systems.recipes import Decay, Rate, Recipe, Unit
from bayes_adapters.systems.system import ON_TOKENS, QUERY_VALUE
from bayes_adapters.systems.system import System as System

_USUAL = {"targets": QUERY_VALUE, "rank": 8, "alpha": 16.0}
_BLOB_REPOSITORY = "the scripts of Wang-ML-Lab/bayesian-peft"
_BASELINE = Recipe(lr=1e-4, warmup=0.06, decay=Decay.LINEAR, batch_size=4, steps=5000)
_CONTEXT_PAPERS = (
    "Rank, draws at test and length of training are known second-hand; the equations are not public: all the rest is a "
    "reconstruction on C-LoRA. KL divided by layers and tokens, weight 1e-4, AdamW 1e-4, batch 16 are guesses."
)
_CALIBER = Recipe(
    lr=1e-4, batch_size=16, epochs=50, kl_weight=1e-4, kl_mode=KLMode.PER_TOKEN_MEAN, num_samples=10, clip_norm=1.0
)
_POINT = replace(_CALIBER, kl_weight=0.0, num_samples=1)
_SIGMA = "outputs of σ: r² (width + 1) numbers per layer, 6 % of the whole on MiniLM"
_C_LORA = Recipe(
    lr=1e-4,
    warmup=0.06,
    decay=Decay.LINEAR,
    decay_steps=5000,
    batch_size=4,
    steps=1500,
    kl_weight=1e-6,
    kl_unit=Unit.BATCH,
    windowed=True,
    num_samples=10,
)
_WANDER = Recipe(lr=1e-3, weight_decay=0.01, batch_size=24, epochs=40, clip_norm=0.8)
_COLA = Recipe(
    lr=1e-4,
    weight_decay=1e-4,
    rates={"model.head.*": Rate(2.5e-5, 1e-4)},
    decay=Decay.POLY,
    batch_size=80,
    epochs=150,
)
_HEAD = "The paper's adapters on lm_head have no counterpart: the head here is a linear layer that is trained."

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "lora",
            models.LoRA,
            guides.Delta,
            _BASELINE,
            f"Hu et al. 2021, arXiv 2106.09685; training as the maximum-likelihood baseline in {_BLOB_REPOSITORY}.",
            _USUAL,
            inferred=_HEAD,
        ),
        System(
            "mc-dropout",
            models.AdapterDropout,
            guides.MCDropout,
            replace(_BASELINE, num_samples=10),
            f"Gal and Ghahramani 2016, arXiv 1506.02142; p = 0.1 and 10 passes as in {_BLOB_REPOSITORY}.",
            {**_USUAL, "drop": 0.1},
            inferred=_HEAD,
        ),
        System(
            "bayeslora-2025",
            models.AdapterDropout,
            guides.MCDropout,
            Recipe(lr=1e-4, weight_decay=0.1, batch_size=16, epochs=10, patience=2, num_samples=20),
            "BayesLoRA, arXiv 2506.22809 v1, and its notebooks (DistilBERT, SST-2).",
            {"targets": ON_TOKENS, "rank": 64, "alpha": 8.0, "drop": 0.15},
            inferred="The notebooks leave the head untrained; here it is trained.",
        ),
        System(
            "bayeslora-2026",
            models.StochasticFactors,
            guides.RankWise,
            Recipe(
                lr=1e-3,
                rates={"guide.log_variance.*": Rate(1e-4), "model.head.*": Rate(1e-2, 0.01)},
                warmup=0.06,
                batch_size=32,
                steps=9999,
                clip_norm=0.1,
                kl_weight=1e-6,
                kl_unit=Unit.WHOLE,
                num_samples=5,
                prune={"threshold": 4.0, "start": 2000, "every": 2000},
            ),
            "BayesLoRA, arXiv 2506.22809 v3, and its code (GLUE, DeBERTa-v3-base).",
            {"targets": ON_TOKENS, "rank": 8, "alpha": 16.0},
            {"init_log_variance": -8.0},
            inferred="On GLUE the code never samples; here training and prediction do. 5 draws are its language-model "
            "setting. The learning rate after the warm-up is taken as constant.",
        ),
        System(
            "blob",
            models.StochasticDown,
            guides.MeanField,
            replace(_BASELINE, kl_weight=1.0, kl_unit=Unit.WHOLE, windowed=True, num_samples=10),
            f"BLoB, arXiv 2406.11675, and {_BLOB_REPOSITORY} (Llama-2-7B).",
            {**_USUAL, "flipout": True},
            {"init_scale": (0.00125, 0.0025), "parameter": "root"},
            inferred="One AdamW for everything; the code steps the KL, and ρ, by an SGD of their own (0.01). Signs of "
            f"flipout are drawn per example, not per token. {_HEAD}",
        ),
        System(
            "scalabl",
            models.DiagonalCore,
            guides.MeanField,
            Recipe(lr=1e-4, batch_size=4, steps=5000, kl_weight=0.1, kl_unit=Unit.WHOLE, windowed=True, num_samples=10),
            "ScalaBL, arXiv 2506.21408, and SRI-CSL/BayesAdapt (Qwen2.5-7B).",
            _USUAL,
            {"init_scale": (0.05 / 2**0.5, 0.05), "positive_mean": True},
            inferred="s_σ starts uniform in its root, between ρ/√2 and ρ. The KL is KL(q‖p), the paper's; the "
            f"code's is KL(p‖q). alpha is the other papers'; the learning rate is constant. {_HEAD}",
        ),
        System(
            "polar-vbll",
            models.PoLAR,
            guides.Delta,
            replace(_BASELINE, kl_weight=1.0),
            "PoLAR-VBLL, arXiv 2604.03388 (Llama-3.1-8B); the structure is PoLAR's, arXiv 2506.03133, the head that of "
            "Harrison, Willes and Snoek, arXiv 2404.11599.",
            _USUAL,
            head=partial(VariationalLastLayer, "dense", predictive="probit"),
            inferred="Its numbers are not public: learning rate, batch, steps, rank and alpha are the baseline's; the "
            "KL weight is the ELBO's. X and Y are orthonormal in every step, where the paper nears that manifold "
            "by a landing field; one AdamW moves all, where the paper alternates adapters and head. The core is the "
            "maximum under N(0, 0.2²). The probit form predicts classes, from one pass and without draws: epistemic "
            "is 0. For that part pass head=VariationalLastLayer('dense'), whose draws are of logits, still from one "
            "pass of the backbone.",
        ),
        System(
            "c-lora",
            models.StochasticCore,
            guides.Contextual,
            _C_LORA,
            "C-LoRA, arXiv 2505.17773, and ahra99/c_lora (Llama-2-7B).",
            _USUAL,
            {"width": 64, "scale": "sigmoid_squared"},
            inferred="One AdamW for everything; the code steps the network by an SGD (0.01 to 0.02). Padding has no "
            f"KL. The factor 2 or 4 that four data sets put before the nll is 1. {_HEAD}",
        ),
        System(
            "fixed-e",
            models.StochasticCore,
            guides.MeanField,
            _C_LORA,
            "The control FE of C-LoRA, arXiv 2505.17773, table 4: E does not depend on the input.",
            _USUAL,
            {"init_scale": 0.25},
            inferred="Trained as c-lora; σ starts where C-LoRA's does, at 0.25.",
        ),
        System(
            "coco-lora",
            models.StochasticCore,
            guides.Amortised,
            replace(_CALIBER, epochs=2),
            "CoCo-LoRA, arXiv 2604.16615.",
            _USUAL,
            {"context": "global_shared_heads", "dim": 64},
            inferred=f"Two epochs: 'two rounds'. {_CONTEXT_PAPERS}",
        ),
        System(
            "caliber-g",
            models.StochasticCore,
            guides.PooledContext,
            _CALIBER,
            "CALIBER-G, arXiv 2604.16657.",
            _USUAL,
            {"dim": 64},
            inferred=_CONTEXT_PAPERS,
        ),
        System(
            "caliber-x",
            models.StochasticCore,
            guides.CrossAttention,
            _CALIBER,
            "CALIBER-X, arXiv 2604.16657.",
            _USUAL,
            {"dim": 64, "heads": 1},
            inferred=_CONTEXT_PAPERS,
        ),
        System(
            "caliber-shared-kv",
            models.StochasticCore,
            guides.CrossAttention,
            _CALIBER,
            "CALIBER's shared-KV branch, arXiv 2604.16657.",
            _USUAL,
            {"dim": 64, "heads": 1, "share_kv": True},
            inferred=_CONTEXT_PAPERS,
        ),
        System(
            "caliber-x-fusion",
            models.FusionCore,
            guides.CrossAttention,
            _CALIBER,
            "This library's: CALIBER-X, arXiv 2604.16657, on top of its fusion control: the head sees the context.",
            _USUAL,
            {"dim": 64, "heads": 1},
            inferred=f"No paper has it; the head is lora-fusion's. {_CONTEXT_PAPERS}",
        ),
        System(
            "cross-attention",
            models.StochasticCore,
            guides.CrossAttention,
            _POINT,
            "A control, this library's: CALIBER-X, arXiv 2604.16657, with the network's mean for a core; no noise.",
            _USUAL,
            {"dim": 64, "heads": 1, "scale": None},
            inferred=f"As large as caliber-x, but for the {_SIGMA}. {_CONTEXT_PAPERS}",
        ),
        System(
            "cross-attention-fusion",
            models.FusionCore,
            guides.CrossAttention,
            _POINT,
            "A control, this library's: caliber-x-fusion with its network's mean for a core: no noise, no KL.",
            _USUAL,
            {"dim": 64, "heads": 1, "scale": None},
            inferred=f"As large as caliber-x-fusion, but for the {_SIGMA}. {_CONTEXT_PAPERS}",
        ),
        System(
            "concat-lora",
            models.ConcatLoRA,
            guides.Delta,
            _COLA,
            "LoRA in every encoder, their pooled outputs side by side: CoLA's baseline, arXiv 2604.03314.",
            {"targets": ON_TOKENS, "rank": 16, "alpha": 8.0},
            inferred="Trained as cola; adapters also in linear layers outside the blocks, where an encoder has any.",
        ),
        System(
            "cola",
            models.CoLA,
            guides.Hypernetwork,
            _COLA,
            "CoLA, arXiv 2604.03314, and peterwisu/CoLA (RefCOCO; 20 examples on each of 4 GPUs).",
            {"rank": 16, "alpha": 8.0, "gain": 0.5},
            {"gamma": 16},
            inferred="The head here is a linear layer, not EEVG's decoder. For audio and vision the paper takes Adam, "
            "5e-6 (head 4e-6), batch 2, 50 epochs with patience 10, and gain=0.1, head_width=512.",
        ),
        System(
            "bayesian-cola",
            models.CoLA,
            guides.Hypernetwork,
            replace(_COLA, kl_weight=1e-4, kl_mode=KLMode.PER_TOKEN_MEAN, num_samples=10),
            "This library's: CoLA, arXiv 2604.03314, with a Gaussian over Φ.",
            {"rank": 16, "alpha": 8.0, "gain": 0.5},
            {"gamma": 16, "scale": "softplus"},
            inferred="No paper has it: family, prior N(0, 1) and KL weight are guesses.",
        ),
        System(
            "lora-fusion",
            models.FusionLoRA,
            guides.Delta,
            _POINT,
            "The fusion control of CALIBER, arXiv 2604.16657.",
            _USUAL,
            inferred="A two-layer classifier of width 256 on mean-pooled text and frames; trained as the CALIBERs.",
        ),
        System(
            "wander",
            models.Wander,
            guides.Delta,
            _WANDER,
            "Wander, arXiv 2412.08979, as copies of zrguo/Wander have it (CMU-MOSI).",
            {"fusion_rank": 16, "terms": 8},
            inferred="Weight decay is AdamW's default. The copies reduce the rate by 10 after 10 epochs without "
            "progress; here it is constant. They sum 8 and 12 factors where here one number, 8, serves both.",
        ),
        System(
            "bayesian-wander",
            models.Wander,
            guides.MeanField,
            replace(_WANDER, kl_weight=1.0, num_samples=10),
            "This library's: Wander, arXiv 2412.08979, with a Gaussian over its factors.",
            {"fusion_rank": 16, "terms": 8},
            {"init_scale": 0.01},
            inferred="No paper has it: family, σ at the start and KL weight (the ELBO's) are guesses.",
        ),
    )
}
"""Name → system, in the order of the README's table."""
