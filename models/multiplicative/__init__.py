"""Wander's multiplicative low-rank fusion: its factors, its formulas and a module that owns them."""

from bayes_adapters.models.multiplicative.fusion import cp_fusion as cp_fusion
from bayes_adapters.models.multiplicative.fusion import modality_factors as modality_factors
from bayes_adapters.models.multiplicative.module import CPFusion as CPFusion
