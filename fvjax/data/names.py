"""Names of people and files in one form, so that equal names are equal whoever wrote them.

A name may come from a folder, a list, a manifest or a dataset. Macs write accents as separate characters (NFD), most
others do not (NFC); Windows writes paths with backslashes; blanks at the end of a name are invisible.
"""

from __future__ import annotations

import re
import unicodedata

# Files and folders that tools leave among pictures, in lower case.
TOOLS = frozenset(
    [
        *("@eadir", "@tmp", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot"),  # QNAP
        *("__macosx", "icon\r"),  # macOS
        *(
            "thumbs.db",
            "ehthumbs.db",
            "desktop.ini",
            "$recycle.bin",
            "recycler",
            "system volume information",
        ),  # Windows
        *("lost+found", "__pycache__"),  # file systems, Python
    ]
)
_BREAKS = ("Cc", "Zl", "Zp")  # Unicode categories of controls and ends of lines


def normal(name: str) -> str:
    """Return a name in the form in which names are compared: composed characters, no blanks at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def plain(name: str) -> str:
    """Escape what is not plain text of one line: bytes that are not UTF-8, line breaks and other control characters."""
    text = name.encode(errors="backslashreplace").decode()
    if text.isprintable():  # nearly always
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _BREAKS else c for c in text)


def identity(folder: str) -> str:
    """Return the name of the person whose pictures are in ``folder``; "" if only blanks are left of it."""
    return plain(normal(folder))


def path(text: str) -> str:
    """Return a relative path in the form in which paths are compared: / between its parts, each of them normal."""
    parts = [normal(part) for part in re.split(r"[/\\]", text)]
    return "/".join(part for part in parts if part not in ("", "."))


def leftover(name: str) -> str:
    """Return why a file or folder is no part of a collection of pictures, or "" if its name says nothing of the kind.

    What stands before the colon is the kind of reason.
    """
    if name.startswith("."):
        return f"hidden: {plain(name)!r} begins with a dot"
    if name.lower() in TOOLS:
        return f"a tool's files: {plain(name)!r}"
    return ""
