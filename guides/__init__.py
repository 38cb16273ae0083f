"""Guides: one posterior family per file.

Each has ``name``, ``serves``, ``parts``, ``__init__``, ``posterior``, ``config``, in that order.
"""

from bayes_adapters.guides.amortised import Amortised as Amortised
from bayes_adapters.guides.contextual import Contextual as Contextual
from bayes_adapters.guides.cross_attention import CrossAttention as CrossAttention
from bayes_adapters.guides.delta import Delta as Delta
from bayes_adapters.guides.flow import Flow as Flow
from bayes_adapters.guides.full_gaussian import FullGaussian as FullGaussian
from bayes_adapters.guides.hypernetwork import Hypernetwork as Hypernetwork
from bayes_adapters.guides.inducing_weights import InducingWeights as InducingWeights
from bayes_adapters.guides.input_noise import InputNoise as InputNoise
from bayes_adapters.guides.kronecker_laplace import KroneckerLaplace as KroneckerLaplace
from bayes_adapters.guides.laplace import Laplace as Laplace
from bayes_adapters.guides.low_rank import LowRank as LowRank
from bayes_adapters.guides.matrix_normal import MatrixNormal as MatrixNormal
from bayes_adapters.guides.mc_dropout import MCDropout as MCDropout
from bayes_adapters.guides.mean_field import MeanField as MeanField
from bayes_adapters.guides.mixture import Mixture as Mixture
from bayes_adapters.guides.pooled_context import PooledContext as PooledContext
from bayes_adapters.guides.rank_gates import RankGates as RankGates
from bayes_adapters.guides.rank_wise import RankWise as RankWise
from bayes_adapters.guides.stored_draws import StoredDraws as StoredDraws
from bayes_adapters.guides.swag import SWAG as SWAG
from bayes_adapters.guides.training_free import TrainingFree as TrainingFree
