"""What a check says: the figures that it looked at, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        name: a short name that stays the same, such as "channel-order"; docs/doctor.md lists all.
        problem: what is wrong, in one sentence.
        evidence: the figures that show it, with what is expected.
        remedy: what to do.
    """

    name: str
    problem: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was looked at, such as "colours".
        evidence: the figures in words; why nothing could be said, if `skipped`.
        findings: what is wrong; empty if all is well.
        figures: the same figures by name, for programs.
        skipped: whether the data does not allow this check.
    """

    name: str
    evidence: str
    findings: tuple[Finding, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False
