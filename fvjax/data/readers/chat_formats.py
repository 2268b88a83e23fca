"""Conversations as other projects write them: one JSON object to messages and the paths of its pictures.

    LLaVA, ShareGPT, FairFaceGPT  {"conversations": [{"from": "human" | "gpt" | …, "value": text}], "image": path}
    OpenAI                        {"messages": [{"role": "user" | …, "content": text or parts}], "images": [paths]}

`image` and `images` may each hold one path or a list; a text-only conversation has none. `video` (LLaVA,
FaceInstruct-1M) holds the path of one clip, for which `<video>` stands in the text, and `landmarks_2d` that of the
facial points of the picture or clip. A top-level `system` becomes the system message. Every further key is kept as it
is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fvjax.data.stores.conversations import CLIP, PLACEHOLDER, check_messages

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNSUPPORTED = ("audio", "audios", "tools")
VIDEOS = ("video", "videos")
LANDMARKS = "landmarks_2d"


@dataclass(frozen=True)
class Sample:
    """One conversation without its pictures' bytes.

    Attributes:
        messages: as :mod:`fvjax.data.stores.conversations` stores them.
        pictures: a relative path for each `<image>`.
        meta: the object's further keys, and where its pictures came from.
        placeholder_added: whether `<image>` or `<video>` stood nowhere and was put first.
        video: the path of its clip, if it has one.
        landmarks: the path of the points of its one picture or clip, if it names one.
    """

    messages: list[dict[str, str]]
    pictures: list[str]
    meta: dict[str, Any]
    placeholder_added: bool
    video: str | None = None
    landmarks: str | None = None


def parse(record: Any, frames: int = 0) -> Sample:
    """Convert one object of a file of conversations.

    Args:
        frames: that a clip has in the store; 0: clips are refused.
    Raises:
        ValueError: what is wrong with it. What stands before the colon is the kind of mistake.
    """
    if not isinstance(record, dict):
        raise ValueError(f"not an object: a {type(record).__name__}, expected {{...}}")
    if found := [key for key in (*UNSUPPORTED, *(() if frames else VIDEOS)) if record.get(key)]:
        hint = "; say where videos are with --videos=DIR" if found[0] in VIDEOS else ""
        raise ValueError(f"not supported: {found[0]!r}; only texts and pictures are read{hint}")
    if ("conversations" in record) == ("messages" in record):
        raise ValueError("no messages: expected either 'conversations' or 'messages'")
    pictures = _paths(record)
    messages, paths_in_text = _llava(record) if "conversations" in record else _openai(record)
    if pictures and paths_in_text:
        raise ValueError("pictures named twice: in the content and beside the messages")
    pictures = pictures or paths_in_text
    messages = _system(record) + messages
    video = _video(record)
    messages, placeholder_added = _placed(messages, pictures, video)
    check_messages(messages, len(pictures) + (frames if video else 0), frames)
    consumed = ("conversations", "messages", "system", *UNSUPPORTED)
    meta = {key: value for key, value in record.items() if key not in consumed}
    if paths_in_text:
        meta["images"] = paths_in_text
    return Sample(messages, pictures, meta, placeholder_added, video, _landmarks(record, len(pictures) + bool(video)))


def _video(record: dict[str, Any]) -> str | None:
    """Return the path of the clip. Raises ValueError: several, or no path."""
    named = [path for key in VIDEOS if record.get(key) for path in _as_list(record[key])]
    if len(named) > 1:
        raise ValueError(f"several videos: {len(named)}, one is allowed; ask about each by itself")
    if named and not (isinstance(named[0], str) and named[0]):
        raise ValueError("malformed video path: expected a path")
    return named[0] if named else None


def _landmarks(record: dict[str, Any], media: int) -> str | None:
    """Return the path of the points. Raises ValueError: no path, or nobody knows which picture they belong to."""
    path = record.get(LANDMARKS)
    if path is None or path == "":
        return None
    if not isinstance(path, str):
        raise ValueError(f"malformed landmarks path: {path!r:.100}, expected a path")
    if media != 1:
        raise ValueError(f"landmarks of several pictures: {LANDMARKS!r} is of one picture or clip, there are {media}")
    return path


def _placed(
    messages: list[dict[str, str]], pictures: list[str], video: str | None
) -> tuple[list[dict[str, str]], bool]:
    """Return messages in which pictures and the clip have their place, and whether one was put first."""
    texts = [message["content"] for message in messages]
    if not (pictures or video) or any(PLACEHOLDER in text or CLIP in text for text in texts):
        if video and not pictures and any(PLACEHOLDER in text for text in texts):
            raise ValueError(f"video where the text has {PLACEHOLDER}: {video!r:.200}; write {CLIP} for it")
        return messages, False
    return _with_placeholders(messages, f"{CLIP}\n" * bool(video) + f"{PLACEHOLDER}\n" * len(pictures)), True


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _paths(record: dict[str, Any]) -> list[str]:
    """Return the paths beside the messages."""
    named = [record[key] for key in ("image", "images") if record.get(key) not in (None, [])]
    if len(named) > 1:
        raise ValueError("pictures named twice: both 'image' and 'images'")
    paths = named[0] if named else []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError("malformed picture path: expected a path or a list of paths")
    return paths


def _system(record: dict[str, Any]) -> list[dict[str, str]]:
    text = record.get("system") or ""
    if not isinstance(text, str):
        raise ValueError("malformed message: 'system' is no text")
    return [{"role": "system", "content": text}] if text.strip() else []


def _llava(record: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    return [
        _message(turn, number, "from", "value") for number, turn in enumerate(_turns(record["conversations"]), 1)
    ], []


def _openai(record: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Return the messages and the paths that stand in their content."""
    messages, paths = [], []
    for number, turn in enumerate(_turns(record["messages"]), 1):
        if isinstance(turn, dict) and isinstance(turn.get("content"), list):
            parts = [_part(part, number) for part in turn["content"]]
            turn = {**turn, "content": "".join(text for text, _ in parts)}
            paths += [path for _, path in parts if path]
        messages.append(_message(turn, number, "role", "content"))
    return messages, paths


def _part(part: Any, number: int) -> tuple[str, str]:
    """Return the text of one part of a content, and the path of its picture or ""."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"], ""
    if kind in ("image", "image_url"):
        value = part.get(kind, "")
        path = value.get("url") if isinstance(value, dict) else value
        if isinstance(path, str):
            return f"{PLACEHOLDER}\n", path
    raise ValueError(f"malformed message: a part of message {number} is neither text nor a picture")


def _turns(turns: Any) -> list[Any]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("no messages: expected a list of turns")
    return turns


def _message(turn: Any, number: int, role_key: str, text_key: str) -> dict[str, str]:
    if not isinstance(turn, dict) or set(turn) != {role_key, text_key}:
        raise ValueError(f"malformed message: message {number} must have exactly {role_key!r} and {text_key!r}")
    role, text = turn[role_key], turn[text_key]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"unknown role: message {number} has {role!r:.100}, expected {'|'.join(ROLES)}")
    if not isinstance(text, str):
        raise ValueError(f"malformed message: the {text_key!r} of message {number} is no text")
    return {"role": ROLES[role], "content": text}


def _with_placeholders(messages: list[dict[str, str]], places: str) -> list[dict[str, str]]:
    """Put placeholders before the first question."""
    for number, message in enumerate(messages):
        if message["role"] == "user":
            content = places + message["content"]
            return [*messages[:number], {"role": "user", "content": content}, *messages[number + 1 :]]
    return messages
