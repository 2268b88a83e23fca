"""The loss of violated logic rules: FaceInsight (arXiv 2504.15624), equation 9.

A term is the probability that a picture violates a rule (:mod:`fvjax.attribute_rules`). The linear form adds the terms
up, as the paper does; the log form adds up -log(1 - term), as the semantic loss (arXiv 1711.11157) of each rule alone.
No label is needed, so attributes without labels take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fvjax.attribute_rules import Rule, RuleTable, compile_rules, violation_terms

FORMS = ("linear", "log")
LOG_EPS = 1e-7  # the log form of a certain violation is -log of this, so that it and its gradient stay finite


def loss(
    p: jax.Array, rules: RuleTable | Iterable[Rule | Mapping[str, Any]], names: Sequence[str], form: str = "linear"
) -> jax.Array:
    """Return the mean over images of the sum over rules, a float32 scalar.

    Args:
        p: the attributes' probabilities [N, K], or [K] of one image; computed in float32.
        rules: checked by :func:`fvjax.attribute_rules.compile_rules`, which raises ValueError.
        names: the K attributes.
        form: one of FORMS.
    """
    return jnp.mean(per_image(p, compile_rules(rules, names), form))


def per_image(p: jax.Array, table: RuleTable, form: str = "linear") -> jax.Array:
    """Return each image's sum over the rules, float32 [N] for p [N, K]. Raises ValueError for an unknown `form`."""
    if form not in FORMS:
        raise ValueError(f"logic loss {form!r}: choose 'linear' or 'log'")
    if p.shape[-1] != len(table.names):
        raise ValueError(f"probabilities of {p.shape[-1]} attributes, but the rules are about {len(table.names)}")
    terms = violation_terms(p.astype(jnp.float32), table)[1]
    if form == "log":
        terms = -jnp.log1p(-(1.0 - LOG_EPS) * terms)
    return terms.sum(-1)
