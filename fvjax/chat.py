"""`python -m fvjax.chat --model=DIR [--image=FILE …] ["question"]`: ask a VLM about pictures.

With a question it prints one answer, word by word. Without one it holds a dialogue on the terminal: /image FILE adds a
picture to the next question, /new starts again, /quit ends. With --folder it asks the question about every picture of a
folder and writes a JSON line for each; a picture that has its line already is not asked about again.

DIR is a checkpoint of InternVL 2.5 or 3 (in its own layout, in transformers', or converted), or the work directory of a
run that trained conversations. Exit code 2 with one line on standard error for user errors.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from fvjax import api, errors
from fvjax.chat_model import ChatModel
from fvjax.data import tiling

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
        settings = {"max_tokens": flags.max_tokens, "temperature": flags.temperature, "top_p": flags.top_p}
        settings["seed"] = flags.seed
        if flags.folder and not (flags.question and flags.out):
            raise ValueError("--folder: needs a question and --out=FILE.jsonl")
        model = open_model(flags)
        if flags.folder:
            ask_about_folder(model, flags.question, flags.folder, flags.out, settings)
        elif flags.question:
            answer_once(model, flags.question, flags.image, settings, as_json=flags.json)
        else:
            hold_dialogue(model, flags.image, settings)
    except (ValueError, OSError) as error:
        print(f"fvjax: error: {errors.line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def open_model(flags: argparse.Namespace) -> ChatModel:
    """Open the model that the command names, with the settings that it gives."""
    if not (flags.model / "config.json").is_file():
        raise ValueError(f"{flags.model}: no config.json; --model is a checkpoint or the work directory of a run")
    model = api.load(flags.model, scenario="chat", adapters=flags.adapters, dtype=flags.dtype)
    changes = {"template": flags.template, "max_tiles": flags.max_tiles}
    changes = {name: value for name, value in changes.items() if value is not None}
    if flags.system is not None:
        changes["system"] = flags.system or None
    return model.with_settings(**changes)


def answer_once(model: ChatModel, text: str, files: Sequence[Path], settings: dict[str, Any], *, as_json: bool) -> None:
    """Print the answer to one question: word by word, or as JSON."""
    pictures = [read_picture(file) for file in files]
    messages = [question(text, len(pictures))]
    if as_json:
        answer = model.generate(messages, pictures, **settings)
        record = {"question": text, "images": [str(file) for file in files], "answer": answer, **settings}
        print(json.dumps(record, ensure_ascii=False))
    else:
        _print(model.stream(messages, pictures, **settings))


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
            except ValueError as error:
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


def ask_about_folder(model: ChatModel, text: str, folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Ask one question about every picture of a folder; `out` gets a JSON line for each picture, in their order."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: no pictures ({', '.join(PICTURES)})")
    asked = {"question": text, **settings}
    done = _answered(out, asked)
    failed = 0
    with out.open("a", encoding="utf-8") as lines:
        for file in files:
            if file.name in done:
                continue
            record: dict[str, Any] = {"image": file.name, **asked}
            try:
                record["answer"] = model.generate([question(text, 1)], [read_picture(file)], **settings)
            except ValueError as error:
                failed += 1
                record["error"] = errors.line(error)
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            lines.flush()
    print(f"{out}: {len(files)} pictures, {len(done)} of them answered before, {failed} not readable")


def _answered(out: Path, asked: dict[str, Any]) -> set[str]:
    """Return the pictures that a file has lines of. Raises ValueError: lines of another question or other settings."""
    names = set()
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.is_file() else []
    if lines and not lines[-1].endswith("\n"):  # cut short by a kill
        out.write_text("".join(lines[:-1]), encoding="utf-8")
        lines = lines[:-1]
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            same = {key: record[key] for key in asked} == asked
            names.add(record["image"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{out} line {number}: no answer about a picture; choose another --out") from None
        if not same:
            raise ValueError(f"{out} line {number}: is of another question or other settings; choose another --out")
    return names


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
    parser = argparse.ArgumentParser(
        prog="python -m fvjax.chat", description="Ask a vision-language model about pictures.", allow_abbrev=False
    )
    parser.add_argument("question", nargs="?", help="without one: a dialogue")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, or the work directory of a run")
    parser.add_argument("--adapters", type=Path, help="LoRA adapters in PEFT's layout (.safetensors)")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture; may be given several times")
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
