"""Intervals of proportions."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(successes: int, trials: int) -> list[float]:
    """Compute the 95% Wilson score interval of a proportion, [low, high], within 0 and 1.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). It assumes
    that the trials are independent. Unlike p ± 1.96 sqrt(p (1 - p) / n), it has a width at 0 of n and n of n.

    Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no proportion")
    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    return [float(low), float(high)]
