"""Rule files, and how often labels break their rules.

    python -m fvjax.data.rules check --store=DIR                          a store with attribute labels
    python -m fvjax.data.rules check --labels=list_attr_celeba.txt        CelebA's or MAAD-Face's file, or any CSV file
    python -m fvjax.data.rules check --labels=… --rules=celeba40          celeba40 or maad47, or a file in their form
    python -m fvjax.data.rules check --labels=… --sets=anatomical,groups  only these sets of its rules

`check` prints for each rule how many pictures have its antecedent, how many of them break it, and how many would if the
attributes were independent; the rules that it would drop; and the edges that the labels support in the graph of
correlations. Unlabelled attributes decide nothing: a picture counts for a rule if its labels decide the rule.

A CSV file has a header, file names in its first column and 1, -1 or 0 (unlabelled) in the others.

Exit code 0, or 2 with one line that says what is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvjax import attribute_rules, co_occurrence, errors, startup
from fvjax.attribute_rules import Rule, RuleTable
from fvjax.data import attributes
from fvjax.data.readers import celeba, label_files, maad
from fvjax.data.stores import Store
from fvjax.data.stores.manifest import read_manifest

FOLDER = Path(__file__).with_name("rule_sets")
MAX_BYTES = 1 << 20  # of a rule file
TAU = 0.4  # FaceInsight's graph has an edge from this probability on
_ROWS = 1 << 16  # judged at a time
MAX_SHARE = 0.1  # rules that a larger share of their pictures break are dropped


@dataclass(frozen=True)
class RuleFile:
    """A file of rules: the attributes that it is about, and its rules."""

    attributes: tuple[str, ...]
    rules: tuple[Rule, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.set for rule in self.rules))


@dataclass(frozen=True)
class Check:
    """What labels say about one rule.

    Attributes:
        decided: pictures for which the labels decide the rule and which have its antecedent, if it has one.
        violations: those of them that break it.
        rows: pictures for which the labels decide it.
        independent: the share of pictures that would break it if the attributes were independent.
    """

    rule: Rule
    decided: int
    violations: int
    rows: int
    independent: float

    @property
    def share(self) -> float:
        """The share of the decided pictures that break the rule; 0 without any."""
        return self.violations / self.decided if self.decided else 0.0


# ---- files -----------------------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """Return the names of the rule files that come with fvjax."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read(name: str) -> RuleFile:
    """Read a rule file: one of :func:`shipped`, or a TOML file in their form.

    Raises:
        ValueError: no such file, not TOML, an unknown key, an attribute or a rule that is refused
            (:mod:`fvjax.attribute_rules`), or rules that contradict each other. The message names file and rule.
    """
    file = FOLDER / f"{name}.toml" if name in shipped() else Path(name)
    if not file.is_file():
        raise ValueError(f"{name}: no such file of rules; choose {' or '.join(shipped())}, or give a TOML file")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, at most {MAX_BYTES}; is it a file of rules?")
    try:
        entries = tomllib.loads(file.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # TOML and UTF-8
        raise ValueError(f"{file}: not TOML in UTF-8 ({error})") from error
    names, rules = entries.get("attributes"), entries.get("rules")
    if set(entries) != {"attributes", "rules"} or not isinstance(names, list) or not isinstance(rules, list):
        raise ValueError(f"{file}: expected exactly a list attributes and tables [[rules]], as in celeba40.toml")
    if not names or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"{file}: attributes must be a list of names")
    table = attribute_rules.compile_rules(rules, names, str(file))
    return RuleFile(table.names, table.rules)


def load(name: str, sets: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules of some sets of a rule file, such as "anatomical" of celeba40.

    Raises:
        ValueError: as :func:`read`, or a set that the file does not have.
    """
    file = read(name)
    if unknown := [one for one in sets if one not in file.sets]:
        raise ValueError(f"{name}: no set of rules {unknown[0]!r:.100}; it has {', '.join(file.sets)}")
    return tuple(rule for rule in file.rules if rule.set in sets)


def class_rules(groups: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return the rules that a picture has exactly one class of each group: one at least, each without the others."""
    one_each = [
        Rule(f"{group}: {name}", name, tuple(other for other in classes if other != name), "excludes", "class_groups")
        for group, classes in groups.items()
        for name in classes
    ]
    return (*attribute_rules.group_rules(groups), *one_each)


def choose(names: Sequence[str]) -> str:
    """Return the shipped rule file that is about exactly these attributes. Raises ValueError if there is none."""
    for name in shipped():
        if set(read(name).attributes) == set(names):
            return name
    raise ValueError(f"no rules come with fvjax for these {len(names)} attributes; give a file with --rules=FILE.toml")


def read_labels(file: Path) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Read a label file of CelebA or MAAD-Face, or a CSV file: the attributes' names and int8 [N, K].

    Raises:
        ValueError: no such file, or as the file's reader. The message names the line.
    """
    _, first = next(label_files.lines(file), (0, ""))
    columns = [name.strip().lower() for name in first.split(",")]
    if tuple(columns[:2]) == maad.HEADER:
        names, rows = maad.read_rows(file)
        return names, _as_array([row.labels for _, row in rows], len(names))
    if len(columns) == 1 or columns[0] == "image_id":
        table = celeba.read_attributes(file)
        return table.names, _as_array(list(table.rows.values()), len(table.names))
    return _read_csv(file)


def _read_csv(file: Path) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    table = label_files.table(file)
    _, (_, *names) = next(table)
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"{file} line 1: expected a column of file names and attributes, each with another name")
    rows = []
    for number, (_, *cells) in table:
        if wrong := [cell for cell in cells if cell not in maad.VALUES]:
            raise ValueError(f"{file} line {number}: the value {wrong[0]!r:.100}; expected 1, -1 or 0 (unlabelled)")
        rows.append(np.array([maad.VALUES[cell] for cell in cells], np.int8).tobytes())
    return tuple(names), _as_array(rows, len(names))


def _as_array(rows: list[bytes], width: int) -> NDArray[np.int8]:
    return np.frombuffer(b"".join(rows), np.int8).reshape(-1, width)


# ---- checking --------------------------------------------------------------------------------------------------------


def check(labels: NDArray[np.int8], table: RuleTable) -> list[Check]:
    """Count for every rule how often labels -1, 0 (unlabelled) and 1, [N, K], break it."""
    counts = np.zeros((3, len(table.rules)), np.int64)
    for part, decided, broken in _judged(labels, table):
        concerned = decided & ((part[:, table.antecedent] == 1) | (table.has_antecedent == 0))
        counts += [cells.sum(0) for cells in (concerned, broken, decided)]
    marginals = co_occurrence.prevalence(labels, labels != 0)
    independent = attribute_rules.violation_terms(marginals, table)[1]
    return [
        Check(rule, int(concerned), int(broken), int(decided), float(share))
        for rule, (concerned, broken, decided), share in zip(table.rules, counts.T, independent)
    ]


def broken_rows(labels: NDArray[np.int8], table: RuleTable) -> int:
    """Count the pictures whose labels break at least one rule."""
    return sum(int(broken.any(1).sum()) for _, _, broken in _judged(labels, table))


def _judged(
    labels: NDArray[np.int8], table: RuleTable
) -> Iterator[tuple[NDArray[np.int8], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield labels in parts, to save memory, and which rules they decide and which they break, bool [rows, R]."""
    for start in range(0, len(labels), _ROWS):
        part = labels[start : start + _ROWS]
        decided = attribute_rules.checkable(part, table)
        yield part, decided, attribute_rules.violated(part, table) & decided


def dropped(checks: Sequence[Check], max_share: float) -> list[Check]:
    """Return the rules that more than `max_share` of the pictures concerned break."""
    return [one for one in checks if one.share > max_share]


def report(labels: NDArray[np.int8], table: RuleTable, *, tau: float, max_share: float, edges: bool) -> str:
    """Describe how labels keep rules, which rules to drop, and which edges of a graph of correlations they support."""
    checks, rows = check(labels, table), len(labels)
    count = broken_rows(labels, table)
    lines = [f"{rows} pictures, {len(table.names)} attributes, {len(table.rules)} rules"]
    if unknown := float((labels == 0).mean()):
        lines.append(f"{unknown:.1%} of the labels are missing; a picture counts for a rule if its labels decide it")
    lines.append(f"{count} pictures ({count / rows:.2%}) break at least one rule")
    for name in dict.fromkeys(rule.set for rule in table.rules):
        part = attribute_rules.compile_rules([rule for rule in table.rules if rule.set == name], table.names)
        number = broken_rows(labels, part)
        lines.append(f"  {name or 'without a set'}: {len(part.rules)} rules, {number} pictures ({number / rows:.3%})")
    lines += [
        "",
        *_table(checks),
        "",
        *_drop_lines(checks, max_share),
        "",
        *_edge_lines(labels, table.names, tau, edges),
    ]
    return "\n".join(lines)


def _table(checks: Sequence[Check]) -> list[str]:
    width = max((len(one.rule.name) for one in checks), default=4)
    head = f"{'rule':{width}}  {'concerned':>9}  {'broken':>7}  {'share':>7}  {'of rows':>8}  {'independent':>11}"
    lines = [head]
    for one in checks:
        of_rows = one.violations / one.rows if one.rows else 0.0
        share = f"{one.share:>7.2%}" if one.decided else f"{'-':>7}"
        lines.append(
            f"{one.rule.name:{width}}  {one.decided:>9}  {one.violations:>7}  {share}  {of_rows:>8.3%}  "
            f"{one.independent:>11.2%}  {one.rule}"
        )
    return lines


def _drop_lines(checks: Sequence[Check], max_share: float) -> list[str]:
    lines = []
    for one in dropped(checks, max_share):
        lines.append(f"drop {one.rule.name}: {one.share:.2%} of the pictures concerned break it ({one.rule})")
    if not lines:
        lines.append(f"no rule to drop: none is broken by more than {max_share:.0%} of the pictures concerned")
    if unjudged := [one.rule.name for one in checks if not one.decided]:
        lines.append(f"not judged, as no picture is concerned: {', '.join(unjudged)}")
    return lines


def _edge_lines(labels: NDArray[np.int8], names: Sequence[str], tau: float, every: bool) -> list[str]:
    known = labels != 0
    p = co_occurrence.conditional(labels, known)
    edges = (p >= tau).astype(np.int64)
    figures = co_occurrence.statistics(edges)
    lift = int(co_occurrence.lift_edges(labels, known).sum()) - len(names)
    order = np.argsort(-figures["in_degree"], kind="stable")[:6]
    busiest = ", ".join(f"{names[i]} {figures['in_degree'][i]}" for i in order)
    lines = [
        f"edges A -> B with P(B | A) >= {tau}: {figures['edges_mean']:.1f} per attribute, {figures['edges_min']} to "
        f"{figures['edges_max']}; most point at {busiest}",
        f"edges by lift (B at least {co_occurrence.MIN_LIFT:.0f} times as likely, {co_occurrence.MIN_SUPPORT} pictures "
        f"with both): {lift}",
    ]
    if empty := [name for i, name in enumerate(names) if i in figures["empty_rows"]]:
        lines.append(f"without any edge: {', '.join(empty)}")
    for i, name in enumerate(names if every else ()):
        others = [j for j in np.argsort(-p[i], kind="stable") if j != i and edges[i, j]]
        lines.append(f"  {name} -> {', '.join(f'{names[j]} {p[i, j]:.2f}' for j in others) or 'nothing'}")
    return lines


# ---- command ---------------------------------------------------------------------------------------------------------


def run_check(
    store: Path | None,
    labels: Path | None,
    rules: str | None,
    sets: str | None,
    tau: float,
    max_share: float,
    edges: bool,
) -> str:
    """Count how often labels break rules."""
    if not 0 < tau <= 1 or not 0 <= max_share < 1:
        raise ValueError(f"--tau={tau} --max-share={max_share}: expected shares, tau above 0")
    groups: Mapping[str, Sequence[str]] = {}
    if store:
        opened = Store(store, read_manifest(store)["split"])
        columns = attributes.of(opened)
        names, groups, values = columns.names, columns.groups, attributes.labels(opened)
    elif labels:
        names, values = read_labels(labels)
    if not len(values):
        raise ValueError(f"{store or labels}: no picture is listed")
    if groups and not rules:
        table = attribute_rules.compile_rules(class_rules(groups), names)
    else:
        name = rules or choose(names)
        chosen = load(name, sets.split(",") if sets else read(name).sets)
        table = attribute_rules.compile_rules(chosen, names, name)
    return report(values, table, tau=tau, max_share=max_share, edges=edges)


def _parser() -> argparse.ArgumentParser:
    parser = startup.Parser(prog="python -m fvjax.data.rules", description="Rules over attributes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("check", help=run_check.__doc__, description=run_check.__doc__, allow_abbrev=False)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, help="with attribute labels")
    source.add_argument("--labels", type=Path, help="a label file of CelebA or MAAD-Face, or a CSV file")
    sub.add_argument(
        "--rules", help="celeba40, maad47 or FILE.toml (the one for these attributes; classes: one of each)"
    )
    sub.add_argument("--sets", help="of the rules, separated by commas (all)")
    sub.add_argument("--tau", type=float, default=TAU, help=f"the least probability of an edge ({TAU})")
    sub.add_argument("--max-share", type=float, default=MAX_SHARE, help=f"drop rules broken more often ({MAX_SHARE})")
    sub.add_argument("--edges", action="store_true", help="list every edge")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options: dict[str, Any] = vars(_parser().parse_args(argv))
    options.pop("command")
    try:
        with errors.naming(options["store"] or options["labels"]):
            print(run_check(**options))
    except (ValueError, OSError) as error:
        print(f"error: {errors.line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    startup.run(main)
