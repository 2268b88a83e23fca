"""Test the page of `python -m fvjax.demo` as a person meets it: in headless Chromium, with a trained run.

python -m pytest -n0 -m slow tests/test_demo_browser.py

It needs the `demo` extra; tests/browser.py installs Chromium where it can. The screenshots lie in pytest's folder.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from PIL import Image

from fvjax import verify
from fvjax.data import synthetic
from tests import tiny_chat
from tests.browser import Browser, browser, install
from tests.test_align import photograph, where
from tests.test_main import ENV
from tests.test_verify import CONFIG, run

pytestmark = pytest.mark.slow
ANSWERS = ":is(h2, .problem, .said)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a run, a gallery, a chat model and pictures."""
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    folder = tmp_path_factory.mktemp("demo")
    install(folder / "install.log")
    run(folder, CONFIG)
    tiny_chat.write(folder / "chat", template="internvl2_5_hf")
    for person in range(4):
        (folder / f"people/p{person}").mkdir(parents=True)
        for shot in range(2):
            Image.fromarray(synthetic.face(person, shot, 0)).save(folder / f"people/p{person}/{shot}.png")
    pictures = {
        "crop": synthetic.face(2, 5, 0),
        "other": synthetic.face(3, 5, 0),
        "one": photograph((3, where(120, 130, 40))),
        "none": photograph(),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2 << 20))
    (folder / "uploads").mkdir()
    return folder


@pytest.fixture(scope="module")
def served(folder):
    """Start the command; return its address and process."""
    flags = f"--model={folder}/run", f"--gallery={folder}/people", f"--chat={folder}/chat", "--port=0", "--max-mb=1"
    environment = {**ENV, "TMPDIR": str(folder / "uploads"), "GRADIO_SERVER_NAME": "0.0.0.0"}
    command = [sys.executable, "-m", "fvjax.demo", *flags]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[4] for line in lines if line.startswith("The page is at "))
        yield SimpleNamespace(address=address, process=process)
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def page(served, folder):
    with browser(folder) as window:
        window.open(served.address)
        window.element("#compare")
        yield window


@pytest.fixture(scope="module")
def verifier(folder):
    return verify.Verifier(folder / "run")


def upload(page: Browser, place: str, file) -> None:
    clear(page, place)
    page.type(f"{place} input[type=file]", str(file))
    page.wait(
        "return document.querySelector(arguments[0] + ' img')?.src.endsWith(arguments[1])", place, f"/{file.name}"
    )


def clear(page: Browser, place: str) -> None:
    if page.elements(f"{place} button[aria-label='Remove Image']"):
        page.click(f"{place} button[aria-label='Remove Image']")
        page.wait("return !document.querySelector(arguments[0] + ' img')", place)


def answer(page: Browser, place: str, button: str) -> str:
    """Click a button and return the text of the answer."""
    page.run(f"document.querySelectorAll(arguments[0] + ' {ANSWERS}').forEach(each => each.dataset.old = 1)", place)
    page.click(button)
    fresh = f"return [...document.querySelectorAll(arguments[0] + ' {ANSWERS}')].some(each => !each.dataset.old)"
    page.wait(fresh, place)
    return page.text(place)


@pytest.mark.parametrize(("first", "second"), [("crop", "other"), ("one", "crop")])
def test_two_pictures_are_compared(page, folder, verifier, first, second):
    page.click_text("button[role=tab]", "Two photographs")
    upload(page, "#first-picture", folder / f"{first}.png")
    upload(page, "#second-picture", folder / f"{second}.png")
    shown = answer(page, "#verdict", "#compare")
    page.screenshot(folder / f"pair_{first}.png")
    result = verifier.compare(folder / f"{first}.png", folder / f"{second}.png")
    lines = shown.splitlines()
    assert ("Same person" if result["same"] else "Different persons") in lines
    assert any(line.startswith(f"score {result['score']:.4f} (cosine) ") for line in lines)
    assert "95% interval of its FAR: 0 to 0.3 (Wilson's, of 0 in 9)" in lines
    assert any(line.startswith("caution: ") for line in lines) == (
        first == "one"
    )  # no crop, and the model knows drawings
    assert page.wait("return document.querySelector('#verdict img').naturalWidth") > 500


def test_a_picture_that_cannot_be_used_is_a_line(page, folder):
    page.click_text("button[role=tab]", "Two photographs")
    for place, file, expected in (
        ("#first-picture", "broken.png", "first picture (broken.png): cannot be read as an image"),
        ("#first-picture", "none.png", "first picture (none.png): no face found in 250x250 pixels"),
    ):
        upload(page, "#second-picture", folder / "crop.png")
        upload(page, place, folder / file)
        shown = answer(page, "#verdict", "#compare")
        assert shown.startswith(expected)
        assert "\n" not in shown
        assert str(folder) not in shown
    clear(page, "#first-picture")
    assert answer(page, "#verdict", "#compare") == "first picture: choose one first"


def test_a_person_is_found(page, folder):
    page.click_text("button[role=tab]", "Find a person")
    upload(page, "#whom-to-search-for", folder / "people/p2/0.png")
    shown = answer(page, "#found", "#search")
    page.screenshot(folder / "found.png")
    assert shown.startswith("Most similar: p2, who reaches the threshold")
    assert "compared with 8 faces of the gallery of 4 people" in shown
    assert "(FPIR) in this gallery: " in shown
    assert page.run("return [...document.querySelectorAll('#found img')].map(each => each.naturalWidth)") == [112] * 6


def test_a_question_is_answered(page, folder):
    page.click_text("button[role=tab]", "Questions")
    assert answer(page, "#said", "#ask") == "write a question of at most 2,000 characters"
    page.type("#question :is(input, textarea)", "Hair?")
    assert answer(page, "#said", "#ask") == "picture: choose one first"
    upload(page, "#picture", folder / "one.png")
    assert answer(page, "#said", "#ask")
    assert page.elements("#said .said")


def test_a_file_that_is_too_large_is_refused(page, folder):
    page.click_text("button[role=tab]", "Two photographs")
    page.type("#second-picture input[type=file]", str(folder / "large.png"))
    page.wait("return document.body.innerText.includes('exceed the maximum allowed size of 1 MB')")


def test_the_browser_asked_no_other_address(page, served):
    local = (f"{served.address}/", "data:", "blob:", "chrome")
    assert [address for address in page.addresses() if not address.startswith(local)] == []
    severe = [entry["message"] for entry in page.log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if "Content Security" in message], severe


def test_no_mistake_of_a_person_was_a_traceback(page, folder):
    log = (folder / "server.log").read_text()
    assert log.startswith("fvjax: GRADIO_SERVER_NAME: ignored")
    assert log.count("\n") == 1, log


# ---- requests that no page makes


def ask(address: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(address, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send_file(address: str, size: int) -> tuple[int, bytes]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = "multipart/form-data; boundary=x"
    return ask(f"{address}/gradio_api/upload", head + bytes(size) + b"\r\n--x--\r\n", Content_Type=kind)


def test_the_server_answers_its_own_page_only(served):
    assert ask(served.address)[0] == 200
    assert ask(served.address, Host="evil.example")[0] == 403
    assert ask(served.address, Origin="http://evil.example")[0] == 403
    for page in ("docs", "redoc", "openapi.json", "monitoring", "gradio_api/runs", "gradio_api/openapi.json"):
        status, content = ask(f"{served.address}/{page}")
        assert status in (403, 404), page
        assert b"openapi" not in content
    info = json.loads(ask(f"{served.address}/gradio_api/info")[1])
    assert (info["named_endpoints"], info["unnamed_endpoints"]) == ({}, {})
    config = json.loads(ask(f"{served.address}/config")[1])
    assert (config["analytics_enabled"], config["max_file_size"]) == (False, 1 << 20)


def test_uploads_are_limited_and_private(served, folder):
    (private,) = (folder / "uploads").glob("fvjax-demo-*")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    before = sorted(private.rglob("*"))
    for size, expected in ((1 << 20, 200), ((1 << 20) + 1, 413), (3 << 20, 413)):
        assert send_file(served.address, size)[0] == expected
    added = [file for file in sorted(private.rglob("*")) if file not in before and file.is_file()]
    assert [file.stat().st_size for file in added] == [1 << 20]


def test_only_uploaded_files_are_read(served, folder):
    """A request may name any path; only that of an upload is opened."""
    config = json.loads(ask(f"{served.address}/config")[1])
    (number,) = [each["id"] for each in config["dependencies"] if len(each["inputs"]) == 3 and each["targets"]][:1]
    for path in (f"{folder}/crop.png", "/etc/hostname"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file, file, "centre"], "fn_index": number, "session_hash": "s"}
        join = f"{served.address}/gradio_api/queue/join"
        assert ask(join, json.dumps(body).encode(), Content_Type="application/json")[0] == 200
        told = ask(f"{served.address}/gradio_api/queue/data?session_hash=s")[1].decode()
        assert '"success":false' in told
        assert "person" not in told
        assert "cannot be read" not in told
        assert ask(f"{served.address}/gradio_api/file={path}")[0] == 403


def test_a_signal_ends_it_and_deletes_the_uploads(served, folder):
    assert list((folder / "uploads").glob("fvjax-demo-*/*"))
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(30) == 143
    assert list((folder / "uploads").iterdir()) == []
