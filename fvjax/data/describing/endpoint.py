"""A client of OpenAI-compatible endpoints: POST URL/chat/completions with one picture and one question.

The key comes from the environment variable FVJAX_ENDPOINT_KEY and leaves this process in one header only: it is in no
error, log or file, it does not follow redirects, and it is not sent unencrypted to another machine.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY_VARIABLE = "FVJAX_ENDPOINT_KEY"
MAX_REPLY = 1 << 20  # bytes; an answer of 4,000 tokens has 20 kB
RETRIES = 4  # after the first request
LONGEST_WAIT = 60.0  # seconds between two requests
BUSY = (408, 425, 429, 500, 502, 503, 504, 529)  # status codes that may pass
REFUSED = (401, 403, 404, 405)  # status codes that every request will get
LOCAL = ("localhost", "127.0.0.1", "::1")
_CHUNK = 1 << 16


class NoAnswer(Exception):
    """One question got no usable answer. The text is the reason, to be counted."""


class Stopped(Exception):
    """No further request may be made: the limit is reached, or the run ends."""


class Refused(ValueError):
    """The endpoint will refuse every request: a wrong key, model or address."""


@dataclass
class Budget:
    """The number of requests that may still be made, shared by threads; retries count.

    Attributes:
        made: the requests made so far.
    """

    most: int
    made: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Count one request. Raises Stopped if it would be one too many."""
        with self._lock:
            if self.made >= self.most:
                raise Stopped(f"--max-requests={self.most} is reached")
            self.made += 1


class Endpoint:
    """An endpoint that answers questions about pictures. Safe to use from several threads.

    Args:
        url: its base, such as http://localhost:8000/v1.
        model: the name of the model.
        key: the key, or "" for none (see :func:`read_key`).
        max_tokens: the longest answer.
        timeout: seconds for one request, from connecting to the last byte.
        budget: the requests that may be made.
    Raises:
        ValueError: a URL that is not plain http or https, or a key that would travel unencrypted.
    """

    def __init__(self, url: str, model: str, key: str, *, max_tokens: int, timeout: float, budget: Budget):
        host = _check_url(url, bool(key))
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._key = key
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._budget = budget
        self._ending = threading.Event()
        # A proxy would see what is meant for this machine.
        proxies = [urllib.request.ProxyHandler({})] if host in LOCAL else []
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)

    def end(self) -> None:
        """Let no thread wait or try again; requests on their way finish."""
        self._ending.set()

    def ask(self, system: str, text: str, picture: bytes, media_type: str) -> str:
        """Return the answer to a question about a picture, after retries if the endpoint is busy.

        Raises:
            NoAnswer: no usable answer to this question.
            Stopped: the budget is spent, or :meth:`end` was called.
            Refused: no question will be answered.
        """
        return self.ask_about(system, text, [(picture, media_type)])

    def ask_about(self, system: str, text: str, pictures: Sequence[tuple[bytes, str]]) -> str:
        """Return the answer to a question about several pictures, each (bytes, media type), as :meth:`ask` does."""
        body = json.dumps(self._payload(system, text, pictures)).encode()
        wait, reason = 0.0, ""
        for attempt in range(RETRIES + 1):
            if self._ending.wait(wait):
                raise Stopped("the run ends")
            self._budget.take()
            try:
                return self._answer(self._post(body))
            except _Busy as busy:
                reason = busy.reason
                wait = min(LONGEST_WAIT, max(busy.wait, 2.0**attempt))
        raise NoAnswer(reason)

    def _payload(self, system: str, text: str, pictures: Sequence[tuple[bytes, str]]) -> dict[str, Any]:
        uris = [f"data:{media_type};base64,{base64.b64encode(picture).decode()}" for picture, media_type in pictures]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        content.append({"type": "text", "text": text})
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        return {"model": self._model, "max_tokens": self._max_tokens, "messages": messages}

    def _post(self, body: bytes) -> bytes:
        """Return the body of the reply. Raises NoAnswer, _Busy or Refused."""
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._status_error(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            cause = getattr(error, "reason", error)
            reason = "no reply in time" if isinstance(cause, TimeoutError) else "no connection"
            raise _Busy(reason) from None

    def _status_error(self, error: urllib.error.HTTPError) -> Exception:
        error.close()
        if error.code in BUSY:
            return _Busy(f"HTTP status {error.code}", _seconds(error.headers.get("Retry-After")))
        if error.code in REFUSED or 300 <= error.code < 400:
            remedy = f"check {KEY_VARIABLE}" if error.code in (401, 403) else "check --url and --model"
            return Refused(f"{self._url}: HTTP status {error.code}; {remedy}")
        return NoAnswer(f"HTTP status {error.code}")

    def _answer(self, body: bytes) -> str:
        """Return the text of the first choice. Raises NoAnswer."""
        if body.lstrip()[:1] == b"<":
            raise NoAnswer("a page of HTML")
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            raise NoAnswer("not JSON") from None
        match reply:
            case {"choices": [{"message": {"content": content}} as choice, *_]}:
                return self._content(content, choice.get("finish_reason"))
        raise NoAnswer("no choices")

    def _content(self, content: Any, finish_reason: Any) -> str:
        if finish_reason == "length":
            raise NoAnswer("cut off at --max-tokens")
        if finish_reason == "content_filter":
            raise NoAnswer("withheld by the endpoint's filter")
        if not isinstance(content, str) or not content.strip():
            raise NoAnswer("an empty answer")
        if not _is_text(content):
            raise NoAnswer("broken characters")
        if self._key and self._key in content:
            raise NoAnswer("the answer has the key in it")
        return content.strip()


def read_key(environment: Mapping[str, str] = os.environ) -> str:
    """Return the key from FVJAX_ENDPOINT_KEY, "" if there is none.

    Raises:
        ValueError: it has characters that a header cannot carry. The message does not show it.
    """
    key = environment.get(KEY_VARIABLE, "").strip()
    if not all(33 <= ord(character) < 127 for character in key):
        raise ValueError(f"{KEY_VARIABLE}: a key has printable ASCII characters without spaces; set it again")
    return key


class _Busy(Exception):
    """The endpoint may answer the same request later, after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes errors of redirects: a picture and a key are for the address that the user named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _check_url(url: str, has_key: bool) -> str:
    """Return the host of an address that pictures and a key may go to; raise ValueError for another."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"--url: not an address ({error}); expected such as http://localhost:8000/v1") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"--url: a user, password or query belongs in no address; a key goes into {KEY_VARIABLE}")
    plain = all(33 <= ord(character) < 127 for character in url)
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ValueError(f"--url={url:.200}: expected http or https, such as http://localhost:8000/v1")
    if has_key and parts.scheme == "http" and host not in LOCAL:
        raise ValueError(f"--url={url:.200}: the key would travel unencrypted; use https, or unset {KEY_VARIABLE}")
    return host


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the body. Raises NoAnswer if it is too large, and _Busy if it is not there in time."""
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > MAX_REPLY:
            raise NoAnswer(f"a reply of more than {MAX_REPLY} bytes")
        if time.monotonic() > deadline:
            raise _Busy("no reply in time")
    return bytes(body)


def _is_text(content: str) -> bool:
    """Tell whether a text can be written as UTF-8: JSON can name halves of characters."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 for none, or a date."""
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdecimal() else 0.0
