"""Intervals of proportions."""

from __future__ import annotations

import math
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson(successes: int, trials: int) -> list[float]:
    """Compute the 95% Wilson score interval of a proportion, [low, high], within 0 and 1.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). It assumes
    that the trials are independent. Unlike p ± 1.96 sqrt(p (1 - p) / n), it has a width at 0 of n and n of n.

    Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no proportion")
    share, z2 = successes / trials, Z95**2
    centre = share + z2 / (2 * trials)
    half_width = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low, high = ((centre + sign * half_width) / (1 + z2 / trials) for sign in (-1, 1))
    # Rounding may leave a bound of 0 of n or n of n just beside 0 or 1.
    return [0.0 if successes == 0 else low, 1.0 if successes == trials else high]
