"""`python -m fvjax.chat --model=DIR [--image=FILE …] ["question"]`: ask a VLM about pictures.

With a question it prints one answer, word by word. Without one it holds a dialogue on the terminal: /image FILE adds a
picture to the next question, /new starts again, /quit ends. With --folder it asks the question about every picture of a
folder and writes a JSON line for each; a picture that has its line already is not asked about again.

DIR is a checkpoint of InternVL 2.5 or 3 (in its own layout, in transformers', or converted), or the work directory of a
run that trained conversations. It may also be LLaVA-1.5, Video-LLaVA or Face-LLaVA: then a question has one answer, and
--video shows a clip, of which eight frames are read (with the extra `video`). Exit code 2 with one line on standard
error for user errors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from fvjax import api, errors, startup
from fvjax.chat_model import ChatModel
from fvjax.data import frames, tiling
from fvjax.media_model import MediaModel

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def read_picture(file: Path) -> np.ndarray:
    """Read a picture: uint8 [H,W,3] RGB, upright. Raises ValueError: missing, or no picture that can be read."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about pictures that are refused anyway
        return np.asarray(tiling.decode_picture(file.read_bytes(), str(file)))


def question(text: str, pictures: int) -> dict[str, str]:
    """Return a user's message; pictures stand before the text unless it says itself where, by `<image>`."""
    marks = text.count("<image>")
    if marks not in (0, pictures):
        raise ValueError(f"the question has {marks} <image>, and there are {pictures} pictures; give as many of each")
    return {"role": "user", "content": text if marks else "<image>\n" * pictures + text}


def main(argv: Sequence[str] | None = None) -> int:
    logging.set_verbosity(logging.ERROR)
    flags = _parser().parse_args(argv)
    try:
        _check(flags)
        settings = {name: getattr(flags, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
        model = open_model(flags)
        if isinstance(model, MediaModel):
            print(ask_about_media(model, flags, settings))
            return 0
        about = {"model": str(flags.model), "adapters": flags.adapters and str(flags.adapters), "dtype": flags.dtype}
        about |= vars(model.settings)
        if flags.folder:
            ask_about_folder(model, flags.question, flags.folder, flags.out, settings, about)
        elif flags.question:
            answer_once(model, flags.question, flags.image, settings, about if flags.json else None)
        else:
            hold_dialogue(model, flags.image, settings)
    except (ValueError, OSError) as error:
        print(f"fvjax: error: {errors.line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def _check(flags: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    if flags.folder and not (flags.question and flags.out):
        raise ValueError("--folder: needs a question and --out=FILE.jsonl")
    if flags.folder and (flags.image or flags.json):
        raise ValueError("--folder: brings its own pictures and writes JSON to --out; leave --image and --json away")
    if flags.out and not flags.folder:
        raise ValueError("--out: is of --folder; print one answer as JSON with --json")
    if flags.json and not flags.question:
        raise ValueError("--json: needs a question")


def ask_about_media(model: MediaModel, flags: argparse.Namespace, settings: dict[str, Any]) -> str:
    """Return the answer of a LLaVA to one question about pictures or a clip, with --json as one line of JSON.

    Raises ValueError: no question, or flags that such a model does not have.
    """
    wrong = [name for name in ("folder", "system", "max_tiles") if getattr(flags, name) is not None]
    if wrong or not flags.question:
        raise ValueError(f"{flags.model} is a LLaVA: it takes a question, and no --{(wrong or ['folder'])[0]}")
    pictures = [read_picture(file) for file in flags.image]
    text = flags.question
    if flags.video and "<video>" not in text:
        text = f"<video>\n{text}"
    message = question(text, len(pictures)) if pictures else {"role": "user", "content": text}
    clip = np.stack(frames.extract(flags.video)[0]) if flags.video else None
    answer = model.generate([message], pictures, **settings, video=clip)
    if not flags.json:
        return answer
    media = {"images": [str(file) for file in flags.image], "video": flags.video and str(flags.video)}
    record = {"question": flags.question, **media, "answer": answer, **settings, "model": str(flags.model)}
    return json.dumps(record, ensure_ascii=False)


def open_model(flags: argparse.Namespace) -> ChatModel | MediaModel:
    """Open the model that the command names, with the settings that it gives.

    Raises ValueError: no model, one that does not hold conversations, or settings that are not known.
    """
    if not (flags.model / "config.json").is_file():
        raise ValueError(f"{flags.model}: no config.json; --model is a checkpoint or the work directory of a run")
    if flags.dtype and api.is_workdir(flags.model):
        raise ValueError(f"--dtype={flags.dtype}: {flags.model} is a run's work directory, which says its own dtype")
    model = api.load(flags.model, scenario="chat", adapters=flags.adapters, dtype=flags.dtype or "float32")
    if isinstance(model, MediaModel):
        model.template = flags.template or model.template
        return model
    if flags.video:
        raise ValueError(f"--video: {flags.model} reads pictures only; a Video-LLaVA or Face-LLaVA reads clips")
    changes = {"template": flags.template, "max_tiles": flags.max_tiles}
    changes = {name: value for name, value in changes.items() if value is not None}
    if flags.system is not None:
        changes["system"] = flags.system or None
    model = model.with_settings(**changes)
    model.format.tile_counts([(1, 1)])  # raises for an unknown template or number of tiles, and without a tokenizer
    return model


def answer_once(
    model: ChatModel, text: str, files: Sequence[Path], settings: dict[str, Any], about: dict[str, Any] | None
) -> None:
    """Print the answer to one question: word by word, or as JSON that says `about` which model it is."""
    pictures = [read_picture(file) for file in files]
    messages = [question(text, len(pictures))]
    if about is None:
        _print(model.stream(messages, pictures, **settings))
        return
    answer = model.generate(messages, pictures, **settings)
    record = {"question": text, "images": [str(file) for file in files], "answer": answer, **settings, **about}
    print(json.dumps(record, ensure_ascii=False))


def hold_dialogue(model: ChatModel, files: Sequence[Path], settings: dict[str, Any]) -> None:
    """Read questions from standard input until it ends, and print the answers."""
    messages: list[dict[str, str]] = []
    pictures = [read_picture(file) for file in files]
    new = len(pictures)
    print("Ask a question. /image FILE adds a picture to it, /new starts again, /quit ends.")
    while (line := _read_line()) is not None and line != "/quit":
        if line == "/new":
            messages, pictures, new = [], [], 0
        elif line.startswith("/image "):
            try:
                pictures.append(read_picture(Path(line.removeprefix("/image ").strip()).expanduser()))
                new += 1
            except (ValueError, OSError) as error:
                print(errors.line(error))
        elif line.startswith("/"):
            print(f"{line.split()[0]}: there are /image FILE, /new and /quit")
        elif line:
            try:
                messages.append(question(line, new))
                answer = _print(model.stream(messages, pictures, **settings))
            except ValueError as error:
                print(errors.line(error))
                messages = messages[: len(messages) // 2 * 2]  # without the question that has no answer
                continue
            messages.append({"role": "assistant", "content": answer})
            new = 0


def ask_about_folder(
    model: ChatModel, text: str, folder: Path, out: Path, settings: dict[str, Any], about: dict[str, Any]
) -> None:
    """Ask one question about every picture of a folder; `out` gets a JSON line for each picture, in their order.

    A picture that cannot be read gets a line with "error" in place of "answer". about: which model it is, for the
    lines.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: no pictures ({', '.join(PICTURES)})")
    asked = {"question": text, **settings, **about}
    done = _done(out, asked)
    before = sum(file.name in done for file in files)
    failed = sum(done.get(file.name, False) for file in files)
    with errors.naming(out), out.open("a", encoding="utf-8") as lines:
        for file in files:
            if file.name in done:
                continue
            record: dict[str, Any] = {"image": file.name}
            try:
                picture = read_picture(file)
            except (ValueError, OSError) as error:
                failed += 1
                record["error"] = errors.line(error)
            else:
                record["answer"] = model.generate([question(text, 1)], [picture], **settings)
            lines.write(json.dumps({**record, **asked}, ensure_ascii=False) + "\n")
            lines.flush()
    print(f"{out}: {len(files)} pictures, {before} of them done before, {failed} not readable")


def _done(out: Path, asked: dict[str, Any]) -> dict[str, bool]:
    """Return the pictures that a file has lines of, and of each whether it could not be read.

    Raises ValueError: lines of another question, another model or other settings.
    """
    content = out.read_bytes() if out.is_file() else b""
    *lines, cut = content.split(b"\n")
    if cut:  # short by a kill or a full disk, perhaps within a character
        os.truncate(out, len(content) - len(cut))
    done = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            other = [key for key, value in asked.items() if record[key] != value]
            done[record["image"]] = "error" in record
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{out} line {number}: no answer about a picture; choose another --out") from None
        if other:
            raise ValueError(f"{out} line {number}: is of another {', '.join(other)}; choose another --out")
    return done


def _print(parts: Iterator[str]) -> str:
    answer = ""
    for part in parts:
        print(part, end="", flush=True)
        answer += part
    print()
    return answer


def _read_line() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = startup.Parser(
        prog="python -m fvjax.chat", description="Ask a vision-language model about pictures.", allow_abbrev=False
    )
    parser.add_argument("question", nargs="?", help="without one: a dialogue")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, or the work directory of a run")
    parser.add_argument("--adapters", type=Path, help="LoRA adapters in PEFT's layout: a directory or a file")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture; may be given several times")
    parser.add_argument("--video", type=Path, help="a clip, for a model that reads clips")
    parser.add_argument("--folder", type=Path, help="ask the question about every picture of this folder")
    parser.add_argument("--out", type=Path, help="JSON lines of --folder's answers; an interrupted run goes on there")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer (512)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (the default): always the most probable token"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample from the tokens that have so much together (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling (0)")
    parser.add_argument("--system", help='another system message; "" for none')
    parser.add_argument("--template", help="another chat template, see fvjax/data/chat.py")
    parser.add_argument("--max-tiles", type=int, help="the most tiles of a picture")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation (float32)")
    return parser


if __name__ == "__main__":
    startup.run(main)
