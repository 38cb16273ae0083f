"""Likelihoods: how outputs of the head become a distribution of the target."""

from bayes_adapters.likelihoods.base import Likelihood as Likelihood
from bayes_adapters.likelihoods.bounding_box import BoundingBox as BoundingBox
from bayes_adapters.likelihoods.candidates import Candidates as Candidates
from bayes_adapters.likelihoods.classes import Bernoulli as Bernoulli
from bayes_adapters.likelihoods.classes import Categorical as Categorical
from bayes_adapters.likelihoods.contrastive import Contrastive as Contrastive
from bayes_adapters.likelihoods.counts import NegativeBinomial as NegativeBinomial
from bayes_adapters.likelihoods.counts import Poisson as Poisson
from bayes_adapters.likelihoods.gaussian_outputs import ConjugateOutputs as ConjugateOutputs
from bayes_adapters.likelihoods.gaussian_outputs import GaussianOutputs as GaussianOutputs
from bayes_adapters.likelihoods.masks import Masks as Masks
from bayes_adapters.likelihoods.multi_gaussian import MultiGaussian as MultiGaussian
from bayes_adapters.likelihoods.multi_label import MultiLabel as MultiLabel
from bayes_adapters.likelihoods.next_token import NextToken as NextToken
from bayes_adapters.likelihoods.ordinal import Ordinal as Ordinal
from bayes_adapters.likelihoods.prediction import Prediction as Prediction
from bayes_adapters.likelihoods.real import Gaussian as Gaussian
from bayes_adapters.likelihoods.real import HeteroscedasticGaussian as HeteroscedasticGaussian
from bayes_adapters.likelihoods.student_t import StudentT as StudentT
from bayes_adapters.likelihoods.tasks import Tasks as Tasks
from bayes_adapters.likelihoods.text_prediction import TextPrediction as TextPrediction
from bayes_adapters.likelihoods.tokens import Tagging as Tagging
