"""The page of `python -m fvjax.demo` in gradio: what stands where, and the server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (an extra)
import uvicorn  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

from fvjax import errors
from fvjax.demo_answers import MAX_QUESTION, MAX_TOP, Answers
from fvjax.evals.answer_html import answer_html, error_html, pair_html, search_html
from fvjax.local_server import Application, LocalOnly

KEPT = 600  # seconds after which an upload is deleted
WAITING = 8  # requests that may wait for the one that is answered
PROBLEMS = (ValueError, OSError, MemoryError)  # what becomes a line on the page
NO_DOCS: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
FACES = [("nearest the centre", "centre"), ("largest", "largest"), ("every face", "all")]
CSS = """
.answer h2 { margin: 0.4em 0 } .same { color: #0a7d33 } .different { color: #b3261e } .unknown { color: inherit }
.dark .same { color: #53d781 } .dark .different { color: #ff8a80 }
.answer ul, .answer p { margin: 0.8em 0 } .answer img { max-width: min(100%, 800px) } .answer figure { margin: 0 }
.answer .search { display: flex; gap: 2em; flex-wrap: wrap; overflow-x: auto }
.answer .search img { max-height: 112px; min-width: 56px }
.answer table, .answer td, .answer th { border: 0 !important } .answer td, .answer th { padding: 0.3em 0.8em }
.answer tr { border: 0; border-bottom: 1px solid #8884 }
.answer .quiet { opacity: 0.75 } .answer .said { white-space: pre-wrap; font-size: 1.2em }
.answer .problem, .answer .caution { border-left: 4px solid #b3261e; padding-left: 0.8em }
.answer .caution { border-color: #c77700; font-weight: bold }
"""


def build(answers: Answers, folder: Path) -> gr.Blocks:
    """Lay out the page: a tab for each kind of question that can be answered. Uploads are in a folder."""
    with gr.Blocks(title="fvjax", analytics_enabled=False, delete_cache=(60, KEPT)) as page:
        gr.Markdown(
            f"# Faces, compared\nModel: `{answers.verifier.name}`. Everything stays on this computer: uploaded "
            f"pictures are deleted after {KEPT // 60} minutes, and when the program ends."
        )
        with gr.Tab("Two photographs"):
            _pair_tab(answers, folder)
        if answers.gallery is not None:
            with gr.Tab("Find a person"):
                _search_tab(answers, folder)
        if answers.chat is not None:
            with gr.Tab("Questions"):
                _question_tab(answers, folder)
    return page.queue(api_open=False, max_size=WAITING, default_concurrency_limit=1)


def application(page: gr.Blocks, port: int, max_mb: int) -> Application:
    """Return the page as an ASGI application that answers its own computer only."""
    app = gr.mount_gradio_app(
        FastAPI(**NO_DOCS),
        page,
        path="/",
        app_kwargs=dict(NO_DOCS),
        allowed_paths=[],
        max_file_size=max_mb << 20,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    page.has_launched = True  # else gradio takes any path that a request names for an uploaded file
    return LocalOnly(app, port, max_body=(max_mb + 1) << 20)


def serve(page: gr.Blocks, server: socket.socket, max_mb: int) -> None:
    """Answer requests on a listening socket until the process is asked to end."""
    port = server.getsockname()[1]
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 1}
    config = uvicorn.Config(application(page, port, max_mb), server_header=False, **settings)
    uvicorn.Server(config).run(sockets=[server])


def or_problem(answer: Callable[..., str]) -> Callable[..., str]:
    """Return a function whose user errors become a line on the page."""

    @wraps(answer)
    def answer_or_problem(*inputs: Any) -> str:
        try:
            return answer(*inputs)
        except PROBLEMS as error:
            return _problem(error)

    return answer_or_problem


def _problem(error: Exception) -> str:
    return error_html("there is too little memory for this" if isinstance(error, MemoryError) else errors.line(error))


def uploaded_file(folder: Path, payload: Any) -> Path | None:
    """Return the file of an upload, None if there is none. Raises gr.Error for a file that is not in the folder."""
    if payload is None or not payload.path:
        return None
    file = Path(payload.path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise gr.Error("that file was not uploaded")
    return file


def _pair_tab(answers: Answers, folder: Path) -> None:
    with gr.Row():
        first, second = _upload("First picture", folder), _upload("Second picture", folder)
    face = gr.Radio(FACES, value="centre", label="Which face of a picture with several?")
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    shown = gr.HTML(elem_id="verdict", elem_classes="answer")

    @or_problem
    def compare(a: Path | None, b: Path | None, which: str) -> str:
        return pair_html(*answers.compare(a, b, which))

    _answer_click(button, compare, [first, second, face], shown)


def _search_tab(answers: Answers, folder: Path) -> None:
    with gr.Row():
        picture = _upload("Whom to search for", folder)
        with gr.Column():
            face = gr.Radio(FACES[:2], value="centre", label="Which face of a picture with several?")
            top = gr.Slider(1, MAX_TOP, value=5, step=1, label="How many faces of the gallery to name")
            button = gr.Button("Search", variant="primary", elem_id="search")
    shown = gr.HTML(elem_id="found", elem_classes="answer")

    @or_problem
    def find(file: Path | None, count: float, which: str) -> str:
        return search_html(*answers.find(file, int(count), which))

    _answer_click(button, find, [picture, top, face], shown)


def _question_tab(answers: Answers, folder: Path) -> None:
    with gr.Row():
        picture = _upload("Picture", folder)
        with gr.Column():
            text = gr.Textbox(label="Question", max_length=MAX_QUESTION, elem_id="question")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
    shown = gr.HTML(elem_id="said", elem_classes="answer")

    def ask(file: Path | None, question: str) -> Iterator[str]:
        try:
            for answer in answers.ask(file, question):
                yield answer_html(answer)
        except PROBLEMS as error:
            yield _problem(error)

    _answer_click(button, ask, [picture, text], shown)


def _answer_click(button: gr.Button, answer: Callable[..., Any], inputs: list[Any], shown: gr.HTML) -> None:
    """Answer a click; of all tabs together one click is answered at a time."""
    button.click(answer, inputs, shown, api_visibility="private", concurrency_limit=1, concurrency_id="model")


def _upload(label: str, folder: Path) -> gr.Image:
    """Return a place for a picture. It hands over the uploaded file, which gradio would decode by rules of its own."""
    name = label.lower().replace(" ", "-")
    picture = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=280, elem_id=name)
    picture.preprocess = partial(uploaded_file, folder)
    return picture
