"""The objects of a large JSON file one after the other: a list of objects (.json), or one object a line (.jsonl).

Only one object is in memory at a time, whatever the size of the file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

MAX_OBJECT = 1 << 22  # characters of one object
CHUNK = 1 << 20  # characters read at a time
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()
_SPACES = re.compile(f"[{_SPACE}]*")


class Item(NamedTuple):
    """One element of a JSON file.

    Attributes:
        number: of the element, from 0.
        line: where it begins, from 1.
        value: what it says; None if it is not JSON.
        problem: why it is not JSON, "" otherwise.
    """

    number: int
    line: int
    value: Any
    problem: str = ""


def items(file: Path, advance: Callable[[int], Any] = lambda _: None) -> Iterator[Item]:
    """Yield the elements of a JSON list, or of a file with one JSON object a line.

    A line that is not JSON is yielded with its problem, except for the first one. A fault inside a list is an error,
    because nobody can tell where the next element begins.

    Args:
        file: UTF-8 with or without a byte order mark; lines may end with CR LF.
        advance: is called with the bytes read since the last call, to show progress.
    Raises:
        ValueError: no such file, not UTF-8, empty, neither of the two forms, cut off, or an element of more than
            MAX_OBJECT characters. The message names the file, and where possible the record and line.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; --src is a .json with a list of objects or a .jsonl")
    with open(file, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n") as text:
        try:
            first = text.read(1)
            skipped_lines = 0
            while first and first in _SPACE:
                skipped_lines += first == "\n"
                first = text.read(1)
            if first not in ("[", "{"):
                shown = f"it begins with {first!r}" if first else "it is empty"
                raise ValueError(f"{file}: {shown}; expected a JSON list of objects, or one object a line")
            read = _list_items if first == "[" else _line_items
            at = 0
            for item in read(text, first, skipped_lines + 1, file):
                position = raw.tell()
                advance(position - at)
                at = position
                yield item
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _line_items(text: TextIO, first: str, line: int, file: Path) -> Iterator[Item]:
    number, begun = 0, first
    while row := begun + text.readline(MAX_OBJECT + 1 - len(begun)):
        if len(row) > MAX_OBJECT:
            raise _too_long(file, number, line)
        if row.strip(_SPACE):
            try:
                yield Item(number, line, json.loads(row))
            except (ValueError, RecursionError) as error:
                if not number:
                    expected = "expected a JSON list of objects, or one object a line"
                    raise ValueError(f"{_location(file, number, line)}: not JSON ({error}); {expected}") from error
                yield Item(number, line, None, f"not JSON: {error}")
            number += 1
        line, begun = line + 1, ""


def _list_items(text: TextIO, first: str, line: int, file: Path) -> Iterator[Item]:
    window = _Window(text, line)
    number = 0
    separator = window.next_character()
    while separator != "]":
        begins_at = window.line
        yield Item(number, begins_at, window.decode(file, number))
        number += 1
        separator = window.next_character()
        if separator == ",":
            window.skip(1)
            window.next_character()
        elif separator != "]":
            problem = f"expected ',' or ']', not {separator!r}" if separator else "the list is cut off"
            raise ValueError(f"{_location(file, number, window.line)}: not JSON ({problem}); get the whole file")
    window.skip(1)
    if rest := window.next_character():
        raise ValueError(f"{file} line {window.line}: {rest!r} after the end of the list")


class _Window:
    """The part of a text that has been read and not yet been used.

    Args:
        text: the text, after the bracket that opens the list.
        line: the number of the line in which the text goes on.
    """

    def __init__(self, text: TextIO, line: int):
        self.line = line
        self._text = text
        self._buffer = ""
        self._at = 0  # what stands before has been used
        self._ended = False

    def next_character(self) -> str:
        """Skip white space and return the next character, which stays; "" at the end."""
        while True:
            spaces = _SPACES.match(self._buffer, self._at)
            self.skip(spaces.end() - self._at if spaces else 0)
            if self._at < len(self._buffer) or not self._read(CHUNK):
                return self._buffer[self._at : self._at + 1]

    def skip(self, length: int) -> None:
        self.line += self._buffer.count("\n", self._at, self._at + length)
        self._at += length

    def decode(self, file: Path, number: int) -> Any:
        """Return the element that begins here, and skip it. Errors as for :func:`items`."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                problem = None
            except RecursionError as error:
                raise ValueError(f"{_location(file, number, self.line)}: too deeply nested") from error
            except json.JSONDecodeError as error:
                value, end, problem = None, len(self._buffer), error
            except ValueError as error:  # a number of thousands of digits
                raise ValueError(f"{_location(file, number, self.line)}: not JSON ({error})") from error
            # The digits of a number could go on in what has not been read yet.
            if not problem and (end < len(self._buffer) or self._ended) and end - self._at <= MAX_OBJECT:
                self.skip(end - self._at)
                return value
            unread = len(self._buffer) - self._at
            # Twice as much each time, so that a long element is not parsed many times over.
            if unread > MAX_OBJECT or (not self._read(max(CHUNK, unread)) and problem):
                raise self._error(file, number, problem)

    def _error(self, file: Path, number: int, problem: json.JSONDecodeError | None) -> ValueError:
        location = _location(file, number, self.line)
        # A string that does not end is a long one; any other fault far from the end of what was read is a fault.
        is_fault = problem and not problem.msg.startswith("Unterminated") and problem.pos - self._at <= MAX_OBJECT // 2
        if problem is None or not (is_fault or self._ended):
            return _too_long(file, number, self.line)
        line = self.line + self._buffer.count("\n", self._at, problem.pos)
        return ValueError(f"{location}: not JSON or cut off ({problem.msg}, line {line}); get the whole file")

    def _read(self, size: int) -> bool:
        more = self._text.read(size)
        self._ended = not more
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)


def _location(file: Path, number: int, line: int) -> str:
    return f"{file} record {number} (line {line})"


def _too_long(file: Path, number: int, line: int) -> ValueError:
    return ValueError(f"{_location(file, number, line)}: more than {MAX_OBJECT} characters; split it up")
