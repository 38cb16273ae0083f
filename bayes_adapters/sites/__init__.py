"""The random tensors of an adapter as Pyro sample sites, and what one call of a site carries."""

from bayes_adapters.sites.call import OF_WEIGHTS as OF_WEIGHTS
from bayes_adapters.sites.call import SITE as SITE
from bayes_adapters.sites.call import Memo as Memo
from bayes_adapters.sites.call import SiteCall as SiteCall
from bayes_adapters.sites.part import REAL as REAL
from bayes_adapters.sites.part import Part as Part
from bayes_adapters.sites.site import Granularity as Granularity
from bayes_adapters.sites.site import Site as Site
from bayes_adapters.sites.site import build_sites as build_sites
from bayes_adapters.sites.summary import Asked as Asked
from bayes_adapters.sites.summary import Summary as Summary
from bayes_adapters.sites.summary import asked as asked
from bayes_adapters.sites.summary import asking as asking
