"""How a command of the examples ends when it is given something it cannot use."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from bayes_adapters.errors import BayesAdaptersError

P = ParamSpec("P")


def user_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Make ``main`` return 2 and print one line, without a traceback, on an error that is the user's."""

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (BayesAdaptersError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return command
