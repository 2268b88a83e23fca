"""Logic rules over attributes: reading and checking them, and the probability that a picture violates them.

A rule has a name, an antecedent (or none), consequents and a kind:

    excludes        A -> not (B1 or … or Bm)
    implies         A -> B
    at_least_one    A -> B1 or … or Bm; without an antecedent the rule holds for every picture

FaceInsight (arXiv 2504.15624), equation 9: with P the probabilities of the attributes, taken as independent, a rule's
term is P(A) V, where V is the probability that its consequents break it. The term is thus the probability that the rule
is violated; it is 0 or 1 for hard decisions.

Losses, metrics and commands share this module, so it knows neither jax nor any file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

KINDS = ("excludes", "implies", "at_least_one")
_KEYS = {"name", "antecedent", "consequents", "kind", "set", "measured"}


@dataclass(frozen=True)
class Rule:
    """One rule; the module's docstring has the kinds. `set` is the group of rules to which it belongs."""

    name: str
    antecedent: str | None
    consequents: tuple[str, ...]
    kind: str
    set: str = ""

    def __str__(self) -> str:
        negated = self.kind == "excludes"
        inner = " or ".join(self.consequents)
        right = f"not ({inner})" if negated and len(self.consequents) > 1 else f"{'not ' * negated}{inner}"
        return f"{self.antecedent} -> {right}" if self.antecedent else f"at least one of {', '.join(self.consequents)}"


@dataclass(frozen=True, eq=False)
class RuleTable:
    """Rules as arrays over the K attributes `names`: R rules with at most M consequents.

    Attributes:
        names: the attributes, in the order of the columns.
        rules: the rules, in the order of the rows.
        antecedent: int32 [R], a column; 0 where there is none.
        has_antecedent: float32 [R], 0 or 1.
        consequents: int32 [R, M], columns; 0 beyond a rule's last.
        present: float32 [R, M], 1 where a consequent is.
        excludes: float32 [R], 1 for rules of that kind.
    """

    names: tuple[str, ...]
    rules: tuple[Rule, ...]
    antecedent: NDArray[np.int32]
    has_antecedent: NDArray[np.float32]
    consequents: NDArray[np.int32]
    present: NDArray[np.float32]
    excludes: NDArray[np.float32]


# ---- reading and checking --------------------------------------------------------------------------------------------


def parse(entries: Iterable[Rule | Mapping[str, Any]], location: str = "rules") -> tuple[Rule, ...]:
    """Return rules from their entries {"name", "antecedent", "consequents", "kind", "set"}.

    "antecedent" may be absent or null, and "set" absent; "measured", counts from some labels, is not kept.

    Args:
        location: where the entries come from, for errors.
    Raises:
        ValueError: an unknown key or kind, a value of another type, an empty side, an attribute on both sides or twice
            on one, or two rules with one name or that say the same. The message names the rule.
    """
    rules: list[Rule] = []
    by_name: dict[str, Rule] = {}
    by_meaning: dict[tuple, Rule] = {}
    for number, entry in enumerate(entries, 1):
        rule = entry if isinstance(entry, Rule) else _from_entry(entry, f"{location}: rule {number}")
        _check(rule, f"{location}: rule {rule.name!r}")
        if rule.name in by_name:
            raise ValueError(f"{location}: rule {rule.name!r} occurs twice; rename or remove one of them")
        meaning = rule.antecedent, frozenset(rule.consequents), rule.kind == "excludes"
        if meaning in by_meaning:
            other = by_meaning[meaning].name
            raise ValueError(f"{location}: rules {other!r} and {rule.name!r} say the same ({rule}); remove one of them")
        by_name[rule.name] = by_meaning[meaning] = rule
        rules.append(rule)
    return tuple(rules)


def _from_entry(entry: Any, location: str) -> Rule:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{location}: a {type(entry).__name__}, expected a table with name, kind and consequents")
    if unknown := sorted(map(repr, set(entry) - _KEYS)):
        raise ValueError(f"{location}: unknown key {unknown[0]:.100}; a rule has {', '.join(sorted(_KEYS))}")
    name, consequents = entry.get("name"), entry.get("consequents")
    texts = {"name": name, "kind": entry.get("kind"), "set": entry.get("set", "")}
    if entry.get("antecedent") is not None:
        texts["antecedent"] = entry["antecedent"]
    for key, value in texts.items():
        if not isinstance(value, str) or not (value or key == "set"):
            raise ValueError(f"{location}: its {key} is {value!r:.100}, expected text")
    if not isinstance(consequents, list | tuple) or not all(isinstance(one, str) for one in consequents):
        raise ValueError(
            f"{location} ({name}): its consequents are {consequents!r:.100}, expected a list of attributes"
        )
    return Rule(texts["name"], texts.get("antecedent"), tuple(consequents), texts["kind"], texts["set"])


def _check(rule: Rule, location: str) -> None:
    """Raise ValueError unless the rule can be violated and kept, whatever the attributes are."""
    if rule.kind not in KINDS:
        raise ValueError(f"{location}: unknown kind {rule.kind!r:.100}; choose one of {', '.join(KINDS)}")
    if not rule.consequents or not all(rule.consequents):
        raise ValueError(f"{location}: it has no consequent; name at least one attribute")
    if rule.antecedent is None and rule.kind != "at_least_one":
        raise ValueError(f"{location}: a rule of the kind {rule.kind!r} needs an antecedent")
    if rule.kind == "implies" and len(rule.consequents) > 1:
        raise ValueError(f"{location}: 'implies' has one consequent; use 'at_least_one', or one rule for each")
    if len(set(rule.consequents)) < len(rule.consequents):
        raise ValueError(f"{location}: a consequent is named twice; remove one")
    if rule.antecedent in rule.consequents:
        raise ValueError(f"{location}: {rule.antecedent!r} is on both sides; remove it from one")


def check_consistent(rules: Sequence[Rule], location: str = "rules") -> None:
    """Raise ValueError if some rules contradict each other: then an antecedent, or any picture at all, breaks one.

    Each antecedent is assumed in turn, and what follows from the rules one by one is derived from it (unit
    propagation); contradictions that need a distinction of cases are not found.
    """
    for start in dict.fromkeys((None, *(rule.antecedent for rule in rules))):
        known: dict[str, tuple[bool, Rule | None]] = {} if start is None else {start: (True, None)}
        while True:
            before = len(known)
            for rule in rules:
                _derive(rule, known, start, location)
            if len(known) == before:
                break


def _derive(rule: Rule, known: dict[str, tuple[bool, Rule | None]], start: str | None, location: str) -> None:
    """Add to `known` what this rule says about attributes that are not known yet."""
    if rule.antecedent is not None and not known.get(rule.antecedent, (False, None))[0]:
        return
    if rule.kind == "excludes":
        for name in rule.consequents:
            _set(name, False, rule, known, start, location)
        return
    open_names = [name for name in rule.consequents if known.get(name, (True, None))[0]]
    if len(open_names) <= 1:
        name = open_names[0] if open_names else rule.consequents[0]
        _set(name, True, rule, known, start, location)


def _set(
    name: str, value: bool, rule: Rule, known: dict[str, tuple[bool, Rule | None]], start: str | None, location: str
) -> None:
    before, reason = known.setdefault(name, (value, rule))
    if before != value:
        other = f"the rule {reason.name!r}" if reason else f"{start!r} itself"
        whom = f"a picture with {start!r}" if start else "a picture"
        raise ValueError(
            f"{location}: rule {rule.name!r} ({rule}) contradicts {other}: {whom} could not keep both; remove one"
        )


def group_rules(groups: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return for each group of classes the rule that a picture has at least one of them."""
    return tuple(Rule(name, None, tuple(classes), "at_least_one", "class_groups") for name, classes in groups.items())


def compile_rules(
    rules: RuleTable | Iterable[Rule | Mapping[str, Any]], names: Sequence[str], location: str = "rules"
) -> RuleTable:
    """Check rules over the attributes `names` and turn them into arrays.

    Raises:
        ValueError: as :func:`parse` and :func:`check_consistent`, an attribute that is none of `names`, or names that
            repeat. The message names the rule.
    """
    if isinstance(rules, RuleTable):
        rules = rules.rules
    parsed, columns = parse(rules, location), {name: i for i, name in enumerate(names)}
    if len(columns) < len(names):
        raise ValueError(f"{location}: the attributes' names repeat: {sorted(names)}")
    for rule in parsed:
        for name in (*([rule.antecedent] if rule.antecedent is not None else []), *rule.consequents):
            if name not in columns:
                known = ", ".join(names)
                raise ValueError(f"{location}: rule {rule.name!r}: unknown attribute {name!r:.100}; known are {known}")
    check_consistent(parsed, location)
    most = max((len(rule.consequents) for rule in parsed), default=0)
    consequents = np.zeros((len(parsed), most), np.int32)
    present = np.zeros((len(parsed), most), np.float32)
    for row, rule in enumerate(parsed):
        consequents[row, : len(rule.consequents)] = [columns[name] for name in rule.consequents]
        present[row, : len(rule.consequents)] = 1
    return RuleTable(
        tuple(names),
        parsed,
        np.array([columns.get(rule.antecedent or "", 0) for rule in parsed], np.int32),
        np.array([rule.antecedent is not None for rule in parsed], np.float32),
        consequents,
        present,
        np.array([rule.kind == "excludes" for rule in parsed], np.float32),
    )


# ---- equation 9 ------------------------------------------------------------------------------------------------------


def violation_terms(p: Any, table: RuleTable) -> tuple[Any, Any]:
    """Return V and the rules' terms, each [..., R] (equation 9).

    Args:
        p: the attributes' probabilities [..., K], of numpy or jax, at least float32.
    """
    kept = 1.0 - p[..., table.consequents] * table.present  # [..., R, M]: 1 beyond the last consequent
    none = table.present.any(1) * 1.0
    # A product one by one, as its derivative by a factor of 0 must not divide by it.
    for column in range(table.present.shape[1]):
        none = none * kept[..., column]
    v = table.excludes + (1.0 - 2.0 * table.excludes) * none
    factor = p[..., table.antecedent] * table.has_antecedent + (1.0 - table.has_antecedent)
    return v, v * factor


def violated(positive: ArrayLike, table: RuleTable) -> NDArray[np.bool_]:
    """Tell which rules are violated by hard decisions, bool [N, R].

    Args:
        positive: [N, K], true or 1 for positive; 0, -1 and false count as not positive, so that a group of unlabelled
            attributes counts as without any.
    """
    return violation_terms((np.asarray(positive) == 1).astype(np.float32), table)[1] > 0.5


def checkable(labels: ArrayLike, table: RuleTable) -> NDArray[np.bool_]:
    """Tell which rules labels -1, 0 (unlabelled) and 1, [N, K], can decide: bool [N, R].

    A rule is decided if it is kept, or if it is broken, whatever the unlabelled attributes are.
    """
    labels = np.asarray(labels)
    unknown = (labels[:, table.consequents] == 0) & (table.present > 0)
    positive = (labels[:, table.consequents] == 1) & (table.present > 0)
    antecedent = np.where(table.has_antecedent > 0, labels[:, table.antecedent], 1)
    consequents_decided = positive.any(-1) | ~unknown.any(-1)
    broken = np.where(table.excludes > 0, positive.any(-1), ~positive.any(-1) & ~unknown.any(-1))
    return (antecedent == -1) | (consequents_decided & ((antecedent == 1) | ~broken))
