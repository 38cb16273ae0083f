"""The correctness kit: one call proves a guide of your own, or shows what is wrong with it.

``check_guide(MyGuide)`` runs named checks; each is also a function of a :class:`Case`. Nothing here needs pytest::

    report = check_guide(MyGuide)
    print(report)              # in a notebook
    report.raise_if_failed()   # in a test

``reference(name)`` is a stored posterior of a small target, and ``closeness(model, guide, reference)`` says how far a
fitted guide is from it.
"""

from bayes_adapters.testing.calibration import Calibration as Calibration
from bayes_adapters.testing.calibration import simulate_calibration as simulate_calibration
from bayes_adapters.testing.case import CONTEXT_WIDTH as CONTEXT_WIDTH
from bayes_adapters.testing.case import Case as Case
from bayes_adapters.testing.case import standard_batch as standard_batch
from bayes_adapters.testing.case import standard_models as standard_models
from bayes_adapters.testing.comparison import Closeness as Closeness
from bayes_adapters.testing.comparison import closeness as closeness
from bayes_adapters.testing.comparison import energy_distance as energy_distance
from bayes_adapters.testing.conjugate import Family as Family
from bayes_adapters.testing.conjugate import check_conjugate as check_conjugate
from bayes_adapters.testing.densities import check_density as check_density
from bayes_adapters.testing.files import check_files as check_files
from bayes_adapters.testing.frozen import check_frozen as check_frozen
from bayes_adapters.testing.functions import check_one_function as check_one_function
from bayes_adapters.testing.gradients import check_gradient as check_gradient
from bayes_adapters.testing.guide import CHECKS as CHECKS
from bayes_adapters.testing.guide import check_guide as check_guide
from bayes_adapters.testing.importance import Importance as Importance
from bayes_adapters.testing.importance import importance as importance
from bayes_adapters.testing.kl import check_kl as check_kl
from bayes_adapters.testing.linear_gaussian import LinearGaussian as LinearGaussian
from bayes_adapters.testing.picture import calibration_plot as calibration_plot
from bayes_adapters.testing.repeatable import check_repeatable as check_repeatable
from bayes_adapters.testing.report import CheckError as CheckError
from bayes_adapters.testing.report import Finding as Finding
from bayes_adapters.testing.report import NotApplicableError as NotApplicableError
from bayes_adapters.testing.report import Outcome as Outcome
from bayes_adapters.testing.report import Report as Report
from bayes_adapters.testing.scales import check_cuts as check_cuts
from bayes_adapters.testing.scales import check_padding as check_padding
from bayes_adapters.testing.scales import check_scale as check_scale
from bayes_adapters.testing.stored import Reference as Reference
from bayes_adapters.testing.stored import reference as reference
from bayes_adapters.testing.targets import TARGETS as TARGETS
from bayes_adapters.testing.targets import Target as Target
from bayes_adapters.testing.training_noise import check_training_noise as check_training_noise
