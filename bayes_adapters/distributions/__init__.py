"""Distributions that Pyro lacks, and what any distribution tells of itself."""

from bayes_adapters.distributions.choice import ListChoice as ListChoice
from bayes_adapters.distributions.curved_gaussian import CurvedGaussian as CurvedGaussian
from bayes_adapters.distributions.curved_matrices import CurvedMatrices as CurvedMatrices
from bayes_adapters.distributions.induced import Induced as Induced
from bayes_adapters.distributions.kronecker import DampedKronecker as DampedKronecker
from bayes_adapters.distributions.log_uniform import LogUniform as LogUniform
from bayes_adapters.distributions.matching import Matching as Matching
from bayes_adapters.distributions.normal_inverse_wishart import (
    MatrixNormalInverseWishart as MatrixNormalInverseWishart,
)
from bayes_adapters.distributions.pixel_labels import PixelLabels as PixelLabels
from bayes_adapters.distributions.points import Points as Points
from bayes_adapters.distributions.potential import WithPotential as WithPotential
from bayes_adapters.distributions.potential import density_of as density_of
from bayes_adapters.distributions.projecting import is_gaussian as is_gaussian
from bayes_adapters.distributions.projecting import projected as projected
from bayes_adapters.distributions.reading import base_distribution as base_distribution
from bayes_adapters.distributions.reading import device_of as device_of
from bayes_adapters.distributions.reading import from_uniforms as from_uniforms
from bayes_adapters.distributions.reading import inverse_cdf as inverse_cdf
from bayes_adapters.distributions.reading import mean_of as mean_of
from bayes_adapters.distributions.shrunk_normal import Block as Block
from bayes_adapters.distributions.shrunk_normal import ShrunkNormal as ShrunkNormal
from bayes_adapters.distributions.structured import Blocks as Blocks
from bayes_adapters.distributions.structured import Root as Root
from bayes_adapters.distributions.structured import RowsAndColumns as RowsAndColumns
from bayes_adapters.distributions.structured import StructuredGaussian as StructuredGaussian
from bayes_adapters.distributions.token_labels import IGNORED as IGNORED
from bayes_adapters.distributions.token_labels import TokenLabels as TokenLabels
from bayes_adapters.distributions.token_logits import NextTokens as NextTokens
from bayes_adapters.distributions.token_logits import TokenLogits as TokenLogits
