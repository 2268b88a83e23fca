"""The audit of answers by a person: a page with random samples beside their pictures, and the rate that its marks give.

The page is one file that needs no network: pictures are embedded, and its content policy lets it load nothing and run
no script but its own. It has faces in it, so it stays with whoever may see those.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fvjax.data import tiling
from fvjax.data.stores.conversations import PLACEHOLDER, Conversation

MARKS = ("right", "hallucinated", "unsure")
SIDE = 512  # pixels: larger pictures are scaled down for the page
MAX_PAGE = 1 << 30  # bytes of a page that is read
MAX_MARKS = 1 << 24  # bytes of a file of marks
_FOLDER = Path(__file__).parent
_AUDIT = '<script type="application/json" id="audit">'


@dataclass(frozen=True)
class Rate:
    """What an audit found.

    Attributes:
        counts: answers by mark, and those "unmarked".
        rate: hallucinated of those that are right or hallucinated.
        interval: its 95% Wilson score interval; answers count as independent.
    """

    counts: dict[str, int]
    rate: float
    interval: tuple[float, float]


def choose(records: int, count: int, seed: int) -> list[int]:
    """Return `count` different record numbers in a random order, or all if there are fewer."""
    if count < 1:
        raise ValueError(f"--count={count}: expected at least one sample")
    return np.random.default_rng(seed).permutation(records)[:count].tolist()


def page(records: Sequence[Conversation], numbers: Sequence[int]) -> str:
    """Return the page of an audit.

    Args:
        records: the samples.
        numbers: their record numbers, which name the answers: "17:2" is the second answer of record 17.
    Raises:
        ValueError: a picture that cannot be read.
    """
    answers = [f"{number}:{turn}" for number, record in zip(numbers, records) for turn in _answers(record)]
    digest = hashlib.sha256()
    for number, record in zip(numbers, records):
        parts = json.dumps([number, record.messages, record.source]), *record.pictures
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    audit = json.dumps({"id": digest.hexdigest(), "answers": answers})
    script = (_FOLDER / "audit.js").read_text(encoding="utf-8")
    fields = {
        "@SCRIPT_HASH@": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "@SCRIPT@": script,
        "@AUDIT@": audit,
        "@SAMPLES@": "\n".join(_section(record, number) for number, record in zip(numbers, records)),
    }
    template = (_FOLDER / "audit.html").read_text(encoding="utf-8")
    return re.sub("@[A-Z_]+@", lambda name: fields[name[0]], template)  # in one go: what is filled in stays as it is


def result(page_file: Path, marks_file: Path) -> Rate:
    """Return what the marks of a page say.

    Raises:
        ValueError: not such files, marks of another audit or of answers that it does not have, or no answer that is
            marked right or hallucinated.
    """
    audit = _read_audit(page_file)
    try:
        saved = json.loads(_read(marks_file, MAX_MARKS))
        marks, audit_id = saved["marks"], saved["audit"]
        counts = Counter(marks.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{marks_file}: no marks of an audit ({error}); save them with the page's button") from error
    if audit_id != audit["id"]:
        raise ValueError(f"{marks_file}: marks of another audit than {page_file}; name the page that they belong to")
    if unknown := (set(marks) - set(audit["answers"])) or (set(counts) - set(MARKS)):
        name = min(map(str, unknown))
        raise ValueError(f"{marks_file}: {name!r:.100} is no answer or mark of {page_file}; save the marks again")
    counts["unmarked"] = len(audit["answers"]) - len(marks)
    judged = counts["right"] + counts["hallucinated"]
    if not judged:
        raise ValueError(f"{marks_file}: no answer is marked right or hallucinated, so there is no rate yet")
    low, high = binomtest(counts["hallucinated"], judged).proportion_ci(method="wilson")
    rate = counts["hallucinated"] / judged
    return Rate({name: counts[name] for name in (*MARKS, "unmarked")}, rate, (float(low), float(high)))


def _read_audit(file: Path) -> dict[str, Any]:
    """Return the id and the answers of a page."""
    try:
        text = _read(file, MAX_PAGE).partition(_AUDIT)[2].partition("</script>")[0]
        audit = json.loads(text)
        return {"id": str(audit["id"]), "answers": [str(answer) for answer in audit["answers"]]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        remedy = "python -m fvjax.data.describe audit makes one"
        raise ValueError(f"{file}: no page of an audit ({error}); {remedy}") from error


def _read(file: Path, most: int) -> str:
    if not file.is_file():
        raise ValueError("no such file")
    if file.stat().st_size > most:
        raise ValueError(f"{file.stat().st_size} bytes, at most {most}")
    return file.read_text(encoding="utf-8")


def _answers(record: Conversation) -> range:
    """Return the numbers of a record's answers, from 1."""
    return range(1, 1 + sum(message["role"] == "assistant" for message in record.messages))


def _section(record: Conversation, number: int) -> str:
    """Return a sample as HTML; all its texts are escaped."""
    images = "".join(f'<img alt="" src="{_data_uri(data, record.source)}">' for data in record.pictures)
    texts, turn = [], 0
    for message in record.messages:
        text = _escape(message["content"].replace(PLACEHOLDER, "").strip())
        if message["role"] != "assistant":
            texts.append(f'<p class="text question">{text}</p>')
            continue
        turn += 1
        boxes = "".join(
            f'<label><input type="radio" name="{number}:{turn}" value="{mark}"> {mark}</label>' for mark in MARKS
        )
        texts.append(f'<p class="text">{text}</p><p>{boxes}</p>')
    source = f'<p class="source">{_escape(record.source)}</p>'
    return f'<section><div class="pictures">{images}{source}</div><div class="texts">{"".join(texts)}</div></section>'


def _escape(text: str) -> str:
    """Return a text as HTML in ASCII."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _data_uri(data: bytes, source: str) -> str:
    """Return a picture as a JPEG of at most SIDE pixels a side: what was decoded, not the file that came."""
    image = tiling.decode_picture(data, source)
    image.thumbnail((SIDE, SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
