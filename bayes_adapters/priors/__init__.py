"""Priors over the random parts of an adapter."""

from bayes_adapters.priors.depth import DepthProcess as DepthProcess
from bayes_adapters.priors.global_weights import GlobalWeights as GlobalWeights
from bayes_adapters.priors.hierarchical import HYPER as HYPER
from bayes_adapters.priors.hierarchical import HyperSite as HyperSite
from bayes_adapters.priors.hierarchical import bijection as bijection
from bayes_adapters.priors.layer_scales import LayerScales as LayerScales
from bayes_adapters.priors.prior import SINGLE_PRIOR as SINGLE_PRIOR
from bayes_adapters.priors.prior import Prior as Prior
from bayes_adapters.priors.prior import PriorLike as PriorLike
from bayes_adapters.priors.prior import SampledPrior as SampledPrior
from bayes_adapters.priors.prior import from_json as from_json
from bayes_adapters.priors.prior import identity_normal as identity_normal
from bayes_adapters.priors.prior import zero_normal as zero_normal
