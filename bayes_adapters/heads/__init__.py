"""Heads: from what the backbone returns to the numbers that a likelihood takes."""

from bayes_adapters.heads.answer_tokens import AnswerTokens as AnswerTokens
from bayes_adapters.heads.bayesian_linear import BayesianLinear as BayesianLinear
from bayes_adapters.heads.bayesian_towers import BayesianTowers as BayesianTowers
from bayes_adapters.heads.conjugate_last_layer import ConjugateLastLayer as ConjugateLastLayer
from bayes_adapters.heads.covariance import Covariance as Covariance
from bayes_adapters.heads.gaussian_process import GaussianProcessHead as GaussianProcessHead
from bayes_adapters.heads.generative import GenerativeLastLayer as GenerativeLastLayer
from bayes_adapters.heads.head import BackboneOutput as BackboneOutput
from bayes_adapters.heads.head import Head as Head
from bayes_adapters.heads.joint_linear import JointLinear as JointLinear
from bayes_adapters.heads.language_model import LanguageModelHead as LanguageModelHead
from bayes_adapters.heads.laplace_linear import LaplaceLinear as LaplaceLinear
from bayes_adapters.heads.linear import LinearHead as LinearHead
from bayes_adapters.heads.pooling import Pooling as Pooling
from bayes_adapters.heads.posterior import HeadPosterior as HeadPosterior
from bayes_adapters.heads.predictive import Predictive as Predictive
from bayes_adapters.heads.transformers_head import TransformersHead as TransformersHead
from bayes_adapters.heads.two_layer import TwoLayerHead as TwoLayerHead
from bayes_adapters.heads.two_towers import TwoTowers as TwoTowers
from bayes_adapters.heads.variational_last_layer import VariationalLastLayer as VariationalLastLayer
