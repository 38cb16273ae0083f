"""Model, guide, ELBO and posterior-predictive sampling."""

from bayes_adapters.inference.elbo import ELBO as ELBO
from bayes_adapters.inference.elbo import ElboTerms as ElboTerms
from bayes_adapters.inference.guide import AdapterGuide as AdapterGuide
from bayes_adapters.inference.handlers import KLMode as KLMode
from bayes_adapters.inference.handlers import KLWeight as KLWeight
from bayes_adapters.inference.joint import JointGuide as JointGuide
from bayes_adapters.inference.model import AdapterModel as AdapterModel
from bayes_adapters.inference.predictive import evaluating as evaluating
from bayes_adapters.inference.predictive import predict as predict
from bayes_adapters.inference.retrieval import Similarities as Similarities
from bayes_adapters.inference.retrieval import similarities as similarities
