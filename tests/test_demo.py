"""Test `python -m fvjax.demo`: what the page answers, what it says of mistakes, and whom its server listens to.

The model is the stand-in of test_photographs.py, whose embedding of a crop is its pixels. test_demo_browser.py opens
the page in a real browser.
"""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fvjax import api, demo, demo_answers, local_server, search, verify
from fvjax.data import images, prepare
from fvjax.data.alignment.faces import read_picture
from fvjax.demo_answers import Answers
from fvjax.evals import answer_html, identification
from fvjax.evals.answer_html import Thumbnail
from tests import test_pair_text
from tests.test_images import file_bytes, png_that_claims, smooth_face
from tests.test_photographs import cosines, files, workdir  # noqa: F401  (fixtures)
from tests.test_search import picture


@pytest.fixture
def verifier(workdir):  # noqa: F811
    """Return a verifier with a threshold of 0.5, measured on lfw."""
    workdir.network.batch_size = 4
    return verify.Verifier(workdir.path)


@pytest.fixture
def folder(tmp_path):
    """Return a gallery of six people with two pictures each; p03 and p04 look alike."""
    for person in range(6):
        for shot in range(2):
            picture(
                tmp_path / f"gallery/p{person:02d}/{shot}.jpg", min(person, 3) if person < 5 else 5, 10 * person + shot
            )
    return tmp_path / "gallery"


def gallery_of(path, verifier) -> search.Gallery:
    return search.Gallery(path, api.Embedder(Path(verifier.name), verifier.opened))


def refused(message: str, function, *inputs) -> str:
    with pytest.raises(ValueError) as error:
        list(function(*inputs) or ())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- two photographs


def test_two_photographs_get_the_answer_of_verify(verifier, files):  # noqa: F811
    result, drawing = Answers(verifier).compare(files["one"], files["several"], "largest")
    expected = verifier.compare(files["one"], files["several"], face="largest")
    assert result == expected | {"images": ["first picture (one.png)", "second picture (several.png)"]}
    assert (result["threshold"], result["far"], result["measured_on"]["benchmark"]) == (0.5, 1e-3, "lfw")
    assert drawing.startswith(b"\x89PNG")


def test_the_drawing_marks_the_faces_that_are_most_alike(verifier, files, monkeypatch):  # noqa: F811
    drawn = []
    monkeypatch.setattr(demo_answers.pair_picture, "draw", lambda *given: drawn.append(given) or b"")
    result, _ = Answers(verifier).compare(files["several"], files["several"], "all")
    best = max(result["comparisons"], key=lambda each: each["score"])
    assert (len(result["comparisons"]), best["a"]) == (9, best["b"])
    assert drawn[0][1] == (best["a"], best["b"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", "second picture (x.png): cannot be read as an image"),
        (png_that_claims(9000, 9000), "9000x9000 pixels in the header, refused"),
        (file_bytes(Image.new("RGB", (200, 150)), "PNG"), "second picture (x.png): no face found in 200x150 pixels"),
    ],
)
def test_a_picture_that_cannot_be_used_is_one_line_without_a_path(data, message, verifier, files, tmp_path):  # noqa: F811
    (tmp_path / "x.png").write_bytes(data)
    line = refused(message, Answers(verifier).compare, files["one"], tmp_path / "x.png")
    assert str(tmp_path) not in line


def test_pictures_that_are_not_there(verifier, files, tmp_path):  # noqa: F811
    refused("first picture: choose one first", Answers(verifier).compare, None, files["one"])
    line = refused("choose it once more", Answers(verifier).compare, files["one"], tmp_path / "gone.png")
    assert line.startswith("second picture (gone.png): ")


# ---- a gallery


def test_a_search_names_the_faces_that_fvjax_search_names(verifier, folder, tmp_path):
    probe = tmp_path / "visitor.jpg"
    picture(probe, 2, 99)
    found = Answers(verifier, gallery_of(folder, verifier)).find(probe, 4)
    expected = search.search(folder, probe, verifier.name, top=4)["results"][0]["candidates"]
    for each, other in zip(found.result["candidates"], expected, strict=True):
        assert (each["file"], each["identity"]) == (other["file"], other["identity"])
        assert each["score"] == pytest.approx(other["score"], abs=1e-6)
        assert each["above_threshold"] == (other["score"] >= 0.5)
    assert found.result["candidates"][0]["identity"] == "p02"
    assert (found.result["faces"], found.result["people"], found.result["benchmark"]) == (12, 6, "lfw")
    assert np.array_equal(_decoded(found.probe), images.decode(probe.read_bytes(), ""))
    for each, thumbnail in zip(found.result["candidates"], found.pictures):
        assert thumbnail is not None
        shown = images.decode((folder / each["file"]).read_bytes(), "").astype(int)
        assert np.abs(_decoded(thumbnail) - shown).mean() < 5


def _decoded(thumbnail: Thumbnail):
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(thumbnail.data)))


def test_the_rate_of_false_positives_is_that_of_the_gallerys_own_people(verifier, folder):
    gallery = gallery_of(folder, verifier)
    fpir = Answers(verifier, gallery).find(folder / "p00/0.jpg").result["fpir"]
    crops = {file: images.decode(file.read_bytes(), "") for file in sorted(folder.rglob("*.jpg"))}
    found = 0
    for file, crop in crops.items():
        others = np.stack([other for name, other in crops.items() if name.parent != file.parent])
        found += bool((cosines(np.stack([crop] * len(others)), others) >= 0.5).any())
    assert 0 < found < 12
    assert (fpir["false_positives"], fpir["searches"], fpir["value"]) == (found, 12, found / 12)
    assert fpir["ci95"][0] < found / 12 < fpir["ci95"][1]


def test_so_many_faces_of_a_large_gallery_are_searched_for(monkeypatch):
    monkeypatch.setattr(identification, "BLOCK", 3)
    rng = np.random.default_rng(0)
    vectors, people = rng.normal(size=(40, 3)), rng.integers(0, 5, 40)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(0, 40, 4)
    found = identification.find_others(vectors, people, rows, 0.95)
    expected = [any(vectors[i] @ vectors[j] >= 0.95 for j in range(40) if people[j] != people[i]) for i in rows]
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(rows)


def test_a_gallery_of_nobody_in_particular_has_no_rate(verifier, folder, tmp_path):
    loose = tmp_path / "loose"
    for person in range(3):
        picture(loose / f"{person}.jpg", person, 90 + person)
    found = Answers(verifier, gallery_of(loose, verifier)).find(loose / "1.jpg")
    assert (found.result["fpir"], found.result["people"]) == (None, None)
    assert found.result["candidates"][0]["file"] == "1.jpg"
    assert len(found.result["candidates"]) == 3
    one = tmp_path / "one"
    picture(one / "p/a.jpg", 1, 1)
    assert Answers(verifier, gallery_of(one, verifier)).find(loose / "1.jpg").result["fpir"] is None


def test_pictures_of_a_store_are_not_shown(verifier, folder, tmp_path):
    assert prepare.main(["folder", f"--src={folder}", f"--dst={tmp_path}/store"]) == 0
    found = Answers(verifier, gallery_of(tmp_path / "store", verifier)).find(folder / "p00/0.jpg", 2)
    assert found.pictures == [None, None]
    assert found.result["candidates"][0]["identity"] == "p00"


def test_only_listed_files_of_a_folder_are_shown(verifier, folder, tmp_path):
    picture(tmp_path / "outside.jpg", 1, 1)
    gallery = gallery_of(folder, verifier)
    assert gallery.picture("p00/0.jpg") is not None
    for name in ("../outside.jpg", str(tmp_path / "outside.jpg"), "p00/none.jpg"):
        assert gallery.picture(name) is None
    (folder / "p00/0.jpg").unlink()
    assert gallery.picture("p00/0.jpg") is None


@pytest.mark.parametrize(("face", "number"), [("centre", 0), ("largest", 1)])
def test_a_search_is_for_the_face_that_was_chosen(verifier, folder, files, face, number):  # noqa: F811
    found = Answers(verifier, gallery_of(folder, verifier)).find(files["several"], face=face)
    assert np.array_equal(_decoded(found.probe), read_picture(files["several"]).faces.crops[number])


def test_searches_that_cannot_be_made(verifier, folder, files):  # noqa: F811
    answers = Answers(verifier, gallery_of(folder, verifier))
    refused("between 1 and 20", answers.find, files["one"], 0)
    refused("between 1 and 20", answers.find, files["one"], 21)
    refused("one face is searched for", answers.find, files["one"], 5, "all")
    refused("picture: choose one first", answers.find, None)
    refused("picture (none.png): no face found", answers.find, files["none"])
    refused("no gallery was given", Answers(verifier).find, files["one"])


def test_a_model_that_answers_about_pairs_has_no_gallery(workdir, folder):  # noqa: F811
    workdir.network.batch_size, workdir.network.encoder.yes_no = 4, (1, 2)
    refused("answers Yes or No about pairs", gallery_of, folder, verify.Verifier(workdir.path))


# ---- questions


def test_a_question_reaches_the_model_with_its_picture(verifier, files):  # noqa: F811
    asked = []

    def stream(messages, pictures, **settings):
        asked.append((messages, [each.shape for each in pictures], settings))
        yield from ("It ", "smiles.")

    answers = Answers(verifier, chat=SimpleNamespace(stream=stream))
    assert list(answers.ask(files["several"], " Mood? ")) == ["It ", "It smiles."]
    message = {"role": "user", "content": "<image>\nMood?"}
    assert asked == [([message], [(340, 420, 3)], {"max_tokens": demo_answers.MAX_TOKENS})]


def test_questions_that_cannot_be_asked(verifier, files, tmp_path):  # noqa: F811
    answers = Answers(verifier, chat=SimpleNamespace(stream=None))
    (tmp_path / "x.png").write_bytes(b"x")
    refused("write a question of at most 2,000 characters", answers.ask, files["one"], " ")
    refused("write a question of at most 2,000 characters", answers.ask, files["one"], "x" * 2001)
    refused("the question has 2 <image>", answers.ask, files["one"], "<image> or <image>?")
    assert str(tmp_path) not in refused("picture (x.png): ", answers.ask, tmp_path / "x.png", "Who?")
    refused("no model for questions was given", Answers(verifier).ask, files["one"], "Who?")
    refused("no config.json", demo_answers.open_chat, tmp_path)


# ---- what is shown


def text_of(html: str) -> str:
    return re.sub(r"<[^>]*>", "|", html)


def test_a_verdict_is_shown_with_what_it_rests_on():
    html = answer_html.pair_html(test_pair_text.result(), b"png")
    assert "<h2 class='same'>Same person</h2>" in html
    for line in (
        "score 0.4123 (cosine) &gt;= threshold 0.3000, for FAR 0.001",
        "measured on lfw: 3,000 impostor pairs, data 01234567, model at step 12",
        "95% interval of its FAR: 0.002 to 0.0068",
        "The false accept rate (FAR) is the share of pairs of different people",
    ):
        assert line in html
    assert "src='data:image/png;base64,cG5n'" in html
    other = answer_html.pair_html(test_pair_text.result(same=False, score=0.1), b"")
    assert other.startswith("<h2 class='different'>Different persons</h2>")
    other = answer_html.pair_html(test_pair_text.result(same=False, score=0.1, caution="only drawings"), b"")
    assert other.startswith("<p class='caution' role='alert'>caution: only drawings</p><h2 class='unknown'>Different")
    assert other.count("only drawings") == 1
    other = answer_html.pair_html(test_pair_text.result(measure="cosine: mirrored"), b"")
    assert "<h2 class='same'>Same person</h2><ul><li>score 0.4123 (cosine: mirrored) &gt;=" in other


def test_without_a_threshold_there_is_no_verdict():
    result = test_pair_text.result(same=None, threshold=None, far=None, far_ci95=None, measured_on=None)
    html = answer_html.pair_html(result, b"")
    assert "<h2 class='unknown'>No verdict</h2><ul><li>score 0.4123 (cosine)</li>" in html
    assert "false accept rate" not in html


def test_a_small_face_is_named():
    small = test_pair_text.picture(1, 4.0)
    html = answer_html.pair_html(test_pair_text.result(pictures=[test_pair_text.picture(), small]), b"")
    assert "<li>b.jpg: face 1 is small, enlarged 4.0 times: expect little of its score</li>" in html


def found(**changes):
    candidates = [
        {"file": "p1/<b>.jpg", "identity": "p1", "score": 0.61, "above_threshold": True},
        {"file": "p2/c.jpg", "identity": "p2", "score": 0.2, "above_threshold": False},
    ]
    fpir = {"value": 0.1, "ci95": [0.05, 0.2], "false_positives": 4, "searches": 40}
    result = {"threshold": 0.5, "far": 1e-3, "benchmark": "lfw", "fpir": fpir, "faces": 1200, "people": 300}
    return {"candidates": candidates, "caution": None, **result} | changes


def test_a_search_is_shown_with_what_its_threshold_means():
    probe = Thumbnail(b"png", "image/png")
    html = answer_html.search_html(found(), probe, [Thumbnail(b"a", "image/jpeg"), None])
    assert html.startswith("<h2 class='same'>Most similar: p1, who reaches the threshold</h2>")
    assert "<td>p1</td><td>p1/&lt;b&gt;.jpg</td><td>0.6100</td><td>reaches the threshold</td>" in html
    assert html.count("<img ") == 2
    assert re.findall(r"<tr><td>(\d+)</td>", html) == ["1", "2"]
    assert "compared with 1,200 faces of the gallery of 300 people" in html
    assert "threshold 0.5000: for FAR 0.001 of a single comparison, measured on lfw" in html
    assert "(FPIR) in this gallery: 10.0%, 95% interval 5.0% to 20.0%: 4 of 40 faces of the gallery" in html
    html = answer_html.search_html(found(fpir=None, people=1), probe, [None, None])
    assert "(FPIR) is not known: one person alone has no strangers" in html
    html = answer_html.search_html(found(threshold=0.7, far=None, fpir=None, people=None), probe, [None, None])
    assert "<h2 class='different'>Nobody of the gallery reaches the threshold</h2>" in html
    assert "threshold 0.7000: given by --threshold" in html
    assert "(FPIR) is not known: nobody says who is who" in html
    html = answer_html.search_html(found(caution="x"), probe, [None, None])
    assert html.startswith("<p class='caution' role='alert'>caution: x</p><h2 class='unknown'>Most similar: p1")
    html = answer_html.search_html(found(threshold=None), probe, [None, None])
    assert "<h2 class='unknown'>Most similar: p1</h2>" in html
    assert "no threshold is known for this model" in html


def test_texts_from_outside_are_no_html(verifier, tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    for html in (answer_html.error_html(bad), answer_html.answer_html(bad)):
        assert "&lt;img" in html
        assert bad not in html
    evil = tmp_path / "a<script>'.jpg"
    evil.write_bytes(images.encode(smooth_face(1)))
    html = answer_html.pair_html(*Answers(verifier).compare(evil, evil))
    assert "<script" not in html
    assert "onerror" not in html
    result = found()
    for each in result["candidates"]:
        each |= {"identity": bad, "file": f"' onerror='{bad}"}
    html = answer_html.search_html(result, Thumbnail(b"", "image/png"), [Thumbnail(b"", "image/jpeg")] * 2)
    assert bad not in html
    assert "' onerror" not in html


# ---- the server


def request(headers, kind="http", port=7860, path="/"):
    """Send a request through LocalOnly; return what is sent back, and whether the application was asked."""
    sent, asked = [], []

    async def application(scope, receive, send):
        asked.append(scope)
        headers = [(b"Content-Type", b"text/html"), (b"Cache-Control", b"public")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message):
        sent.append(message)

    async def receive():
        return {}

    scope = {"type": kind, "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    asyncio.run(local_server.LocalOnly(application, port, 1000, ["/closed"])(scope, receive, send))
    return sent, bool(asked)


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ([("host", "127.0.0.1:7860")], True),
        ([("Host", "LOCALHOST:7860"), ("Origin", "http://localhost:7860")], True),
        ([("host", "127.0.0.1:7861")], False),
        ([("host", "evil.example:7860")], False),
        ([("host", "127.0.0.1:7860"), ("host", "evil.example")], False),
        ([("host", "127.0.0.1:7860"), ("origin", "http://evil.example")], False),
        ([("host", "127.0.0.1:7860"), ("origin", "null")], False),
        ([("host", "127.0.0.1:7860"), ("origin", "http://127.0.0.1:8888")], False),
        ([], False),
    ],
)
def test_only_this_page_is_answered(headers, answered):
    sent, asked = request(headers)
    assert (asked, sent[0]["status"]) == (answered, 200 if answered else 403)


def test_answers_forbid_what_comes_from_elsewhere_and_leave_no_copy():
    (start, *_), _ = request([("host", "127.0.0.1:7860")])
    got = {name.lower().decode(): value.decode() for name, value in start["headers"]}
    assert len(got) == len(start["headers"])
    assert got["content-type"] == "text/html"
    assert got["cache-control"] == "no-store"
    policy = dict(part.strip().split(" ", 1) for part in got["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"https?:|\*", got["content-security-policy"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("content-length", "1000")], 200),
        ([("content-length", "1001")], 413),
        ([("content-length", "10"), ("Content-Length", "1001")], 413),
        ([("content-length", "-1")], 413),
        ([("transfer-encoding", "chunked")], 413),
    ],
)
def test_large_requests_are_refused_before_they_are_read(headers, status):
    sent, asked = request([("host", "127.0.0.1:7860"), *headers])
    assert (asked, sent[0]["status"]) == (status == 200, status)


def test_closed_paths_are_not_there():
    headers = [("host", "127.0.0.1:7860")]
    for path, status in (("/closed", 404), ("/closed/", 404), ("/closed2", 200)):
        assert request(headers, path=path)[0][0]["status"] == status


def test_lifespans_pass_and_websockets_do_not():
    assert request([], "lifespan")[1]
    assert request([("host", "127.0.0.1:7860")], "websocket") == ([{"type": "websocket.close", "code": 1008}], False)


def test_the_server_listens_on_this_computer_only():
    with local_server.listen(0) as server:
        host, port = server.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        line = refused(f"--port={port}: cannot be used (Address already in use)", local_server.listen, port)
        assert "--port=0" in line
    for port in (-1, 65536):
        refused(f"--port={port}: choose one from", local_server.listen, port)


def test_uploads_are_private_and_deleted(monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/elsewhere")
    before, handler = tempfile.tempdir, signal.getsignal(signal.SIGTERM)
    with demo.private_folder() as private:
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert (os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"]) == (str(private), "False")
        assert "GRADIO_SHARE" not in os.environ
        assert tempfile.gettempdir() == str(private)
        (private / "upload.jpg").write_bytes(b"x")
    assert not private.exists()
    assert (tempfile.tempdir, signal.getsignal(signal.SIGTERM)) == (before, handler)
    assert (os.environ["GRADIO_SHARE"], os.environ["GRADIO_TEMP_DIR"]) == ("True", "/elsewhere")
    assert "GRADIO_ANALYTICS_ENABLED" not in os.environ
    assert capsys.readouterr().err.startswith("fvjax: GRADIO_SHARE, GRADIO_TEMP_DIR: ignored")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_delete_the_uploads(number):
    code = "import time; from fvjax.demo import private_folder\nwith private_folder() as folder:"
    code += "\n    (folder / 'upload').touch(); print(folder, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        private = Path(process.stdout.readline().strip())
        assert (private / "upload").exists()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert not private.exists()


# ---- the command


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = demo.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def served(monkeypatch):
    """Serve no page, but return what would be."""
    pages = []
    page = SimpleNamespace(
        build=lambda answers, folder: answers,
        serve=lambda page, server, max_mb: pages.append((page, server.getsockname(), max_mb)),
    )
    monkeypatch.setattr(demo, "import_page", lambda: page)
    return pages


def test_flags_reach_the_page(workdir, folder, served, monkeypatch, capsys, tmp_path):  # noqa: F811
    workdir.network.batch_size = 4
    (tmp_path / "gallery/p00/notes.txt").write_text("x")
    monkeypatch.setattr(demo_answers, "open_chat", lambda path: f"chat of {path}")
    code, out, err = call(capsys, f"--model={workdir.path}", "--port=0")
    ((answers, (host, port), max_mb),) = served
    assert (code, err, host, max_mb) == (0, "", "127.0.0.1", 10)
    assert out.startswith(f"The page is at http://127.0.0.1:{port} and for this computer only.\n")
    assert (answers.verifier.threshold, answers.gallery, answers.chat) == (0.5, None, None)
    flags = f"--gallery={folder}", "--chat=there", "--threshold=0.25", "--max-mb=3", "--port=0"
    code, out, _ = call(capsys, f"--model={workdir.path}", *flags)
    answers, _, max_mb = served[1]
    assert (code, len(answers.gallery), answers.chat, answers.verifier.threshold, max_mb) == (
        0,
        12,
        "chat of there",
        0.25,
        3,
    )
    assert out.startswith(f"gallery {folder}: 12 faces of 6 people; 1 files left out: 1 not a picture\n")
    code, _, err = call(capsys, f"--model={workdir.path}", "--benchmark=cfp", "--port=0")
    assert (code, err.count("\n")) == (2, 1)
    assert "--benchmark=cfp: " in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-mb=0"], "--max-mb=0: choose a size from 1 to 200 MB"),
        (["--max-mb=201"], "--max-mb=201: choose a size"),
        (["--port=65536"], "--port=65536: choose one"),
        (["--model=nowhere", "--port=0"], "nowhere is neither a workdir"),
        (["--gallery=nowhere", "--port=0"], "nowhere: no such file or folder"),
        (["--chat=nowhere", "--port=0"], "--chat=nowhere: no config.json"),
    ],
)
def test_mistakes_are_one_line(flags, message, workdir, served, capsys):  # noqa: F811
    workdir.network.batch_size = 4
    code, _, err = call(capsys, f"--model={workdir.path}", *flags)
    assert (code, err.count("\n"), served) == (2, 1, [])
    assert err.startswith("fvjax: error: ")
    assert message in err


def test_a_port_in_use_is_one_line(workdir, served, capsys):  # noqa: F811
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = call(capsys, f"--model={workdir.path}", f"--port={port}")
    assert (code, err.count("\n")) == (2, 1)
    assert f"--port={port}: cannot be used" in err


def test_without_gradio_the_remedy_is_named(workdir, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fvjax.demo_page", raising=False)
    code, out, err = call(capsys, f"--model={workdir.path}", "--port=0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fvjax: error: the page needs gradio")
    assert "uv sync --extra demo, or pip install 'fvjax[demo]'" in err
