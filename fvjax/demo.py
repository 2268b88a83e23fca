"""`python -m fvjax.demo --model=RUN [--gallery=FOLDER|STORE] [--chat=DIR]`: a page to try a model on pictures.

Two photographs are compared, a person is searched for in a gallery, and a model is asked about a picture. The page is
for this computer alone: it listens on 127.0.0.1, loads nothing from elsewhere, and keeps uploaded pictures in a private
folder that is deleted with the program. Needs the `demo` extra. docs/demo.md shows it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import logging

from fvjax import startup
from fvjax.local_server import HOST, listen

if TYPE_CHECKING:
    from fvjax.demo_answers import Answers

MAX_MB = 200  # of an upload; a picture of the most pixels that are read is smaller
SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C raises KeyboardInterrupt by itself


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for uploads that only this user can read, and delete it afterwards, also after a signal to end.

    gradio finds it in its own setting, and writes the parts of an upload into Python's folder for temporary files.
    Other settings of gradio in the environment are dropped, as some of them would open the page to others.
    """
    settings = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GRADIO_")}
    if settings:
        print(f"fvjax: {', '.join(sorted(settings))}: ignored, the page is for this computer only", file=sys.stderr)
    before, handlers = tempfile.tempdir, {number: signal.signal(number, _end) for number in SIGNALS}
    with tempfile.TemporaryDirectory(prefix="fvjax-demo-") as folder:
        tempfile.tempdir = folder
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
                os.environ.pop(name, None)
            os.environ |= settings


def import_page() -> Any:
    """Import the module that needs gradio. Raises ValueError without it."""
    try:
        from fvjax import demo_page
    except ModuleNotFoundError as error:
        remedy = "uv sync --extra demo, or pip install 'fvjax[demo]'"
        raise ValueError(f"the page needs gradio ({error}): {remedy}") from None
    return demo_page


def open_answers(flags: Any) -> Answers:
    """Open the models and the gallery that the flags name. Raises ValueError."""
    from fvjax import api, demo_answers, search, verify

    if Path(flags.model).suffix.lower() == ".onnx":  # how it reads pixels would be a guess
        work = "evaluate it first (python -m fvjax.evaluate) and give that work directory"
        raise ValueError(f"--model={flags.model}: {work}")
    chat = None if flags.chat is None else demo_answers.open_chat(flags.chat)
    verifier = verify.Verifier(flags.model, threshold=flags.threshold, benchmark=flags.benchmark)
    gallery = None
    if flags.gallery is not None:
        gallery = search.Gallery(flags.gallery, api.Embedder(flags.model, verifier.opened))
        print(gallery_line(gallery))
    answers = demo_answers.Answers(verifier, gallery, chat)
    answers.warm_up()
    return answers


def gallery_line(gallery: Any) -> str:
    """Say what the gallery holds, and what was left out of it."""
    people = "" if gallery.people is None else f" of {gallery.people:,} people"
    line = f"gallery {gallery.collection.path}: {len(gallery):,} faces{people}"
    reasons = gallery.collection.reasons()
    if reasons:
        line += f"; {sum(reasons.values()):,} files left out: "
        line += ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return line


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    logging.set_verbosity(logging.WARNING)
    flags = _parser().parse_args(argv)
    if not 1 <= flags.max_mb <= MAX_MB:
        raise ValueError(f"--max-mb={flags.max_mb}: choose a size from 1 to {MAX_MB} MB")
    with listen(flags.port) as server, private_folder() as folder:
        page = import_page()
        answers = open_answers(flags)
        port = server.getsockname()[1]
        print(f"The page is at http://{HOST}:{port} and for this computer only.", flush=True)
        print("Ctrl-C ends it and deletes the pictures that were uploaded.", flush=True)
        page.serve(page.build(answers, folder), server, flags.max_mb)
    return 0


def _end(number: int, _: Any) -> NoReturn:
    """End as a shell reports a signal, so that the private folder is deleted."""
    sys.exit(128 + number)


def _parser() -> startup.Parser:
    about = "A page to try a model with one's own pictures, for this computer only."
    parser = startup.Parser(prog="python -m fvjax.demo", description=about, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's workdir, or a checkpoint")
    parser.add_argument("--benchmark", metavar="NAME", help="whose threshold; default: the first unseen in training")
    parser.add_argument("--threshold", type=float, metavar="X", help="same person from this score on")
    gallery = "people to search for: a folder of pictures, with one folder for each person, or a face store"
    parser.add_argument("--gallery", type=Path, metavar="PATH", help=gallery)
    parser.add_argument("--chat", type=Path, metavar="DIR", help="a model that answers questions, as of fvjax.chat")
    parser.add_argument("--port", type=int, default=7860, help="of the page (%(default)s); 0: any free one")
    parser.add_argument("--max-mb", type=int, default=10, metavar="N", help="size of a picture's file (%(default)s)")
    return parser


if __name__ == "__main__":
    startup.run(main)
