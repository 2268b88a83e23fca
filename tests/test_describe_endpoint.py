"""Test descriptions by a language model: a local server plays the endpoint, well-behaved or not."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fvjax.data import describe, images
from fvjax.data.describing import answers, prompts
from fvjax.data.describing import endpoint as client
from fvjax.data.prepare import main as prepare
from fvjax.data.readers.fairface import Label
from fvjax.data.stores.conversations import ConversationStore

KEY = "sk-secret-0123456789"
ROWS = [("a/1.jpg", "3-9", "Male", "White"), ("a/2.jpg", "more than 70", "Female", "East Asian")]
QUESTIONS = len(prompts.load().questions)
TOTAL = QUESTIONS * len(ROWS)


class Server:
    """An endpoint whose replies a test chooses.

    Attributes:
        reply: maps (number of the request, its JSON) to (status, body) or (status, body, headers). The header Pause is
            the seconds between the bytes of the body.
        requests: the JSON of each request; `headers`: its headers.
    """

    def __init__(self):
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.reply = lambda number, request: answer(f"Answer {number}.")
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.headers.append({"path": self.path, **self.headers})
                status, body, *headers = outer.reply(number, request)
                try:
                    self.send_response(status)
                    for name, value in (headers or [{}])[0].items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.send(body, float(headers[0].get("Pause", 0)) if headers else 0)
                except OSError:
                    pass  # the client did not wait

            def send(self, body, pause):
                """Write a body, byte by byte if there is to be a pause between the bytes."""
                for piece in [bytes([byte]) for byte in body] if pause else [body]:
                    self.wfile.write(piece)
                    time.sleep(pause)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self) -> Counter:
        """Count the requests by picture and text."""
        return Counter(json.dumps(request["messages"][1]) for request in self.requests)


def answer(text, finish_reason="stop"):
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.01)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    (folder / "a").mkdir(parents=True)
    for number, (file, *_) in enumerate(ROWS):
        (folder / file).write_bytes(images.encode(np.full((112, 112, 3), 50 * number, np.uint8)))
    lines = ["file,age,gender,race,service_test", *(",".join([*row, "True"]) for row in ROWS)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def flags(server, faces, *more):
    options = {"src": faces, "labels": faces.parent / "labels.csv", "dst": faces.parent / "out.jsonl"}
    options |= {"url": server.url, "model": "writer-1", "max-requests": 100, "parallel": 1}
    given = dict(flag.removeprefix("--").split("=", 1) for flag in more)
    return ["endpoint", *(f"--{name}={value}" for name, value in (options | given).items())]


def lines(faces):
    return [json.loads(line) for line in (faces.parent / "out.jsonl").read_text().splitlines()]


def fails(capsys, arguments):
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    assert describe.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_sent_and_what_is_stored(server, faces, capsys):
    assert describe.main(flags(server, faces, "--max-tokens=77")) == 0
    first = server.requests[0]
    assert (first["model"], first["max_tokens"], len(server.requests)) == ("writer-1", 77, TOTAL)
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert "Authorization" not in server.headers[0]
    system, user = first["messages"]
    assert system == {"role": "system", "content": prompts.load().system}
    picture, text = user["content"]
    data = picture["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    assert base64.b64decode(data) == (faces / "a/1.jpg").read_bytes()
    assert "face of a boy of White appearance, 3-9 years old" in text["text"]
    assert (
        "woman of East Asian appearance, more than 70 years old"
        in server.requests[-1]["messages"][1]["content"][1]["text"]
    )
    stored = lines(faces)
    assert stored[0] == {
        "id": "a/1.jpg#demographic attributes",
        "image": "a/1.jpg",
        "conversations": [
            {
                "from": "human",
                "value": "<image>\nDescribe the demographic attributes of the image based on the visual information.",
            },
            {"from": "gpt", "value": "Answer 0."},
        ],
    }
    assert stored[7]["conversations"][0]["value"] == "<image>\nDescribe this image."
    out = capsys.readouterr().out
    assert f"0 of {TOTAL} answers are there" in out
    assert f"{TOTAL} answers in {TOTAL} requests; 0 of {TOTAL} are still missing" in out


def test_a_store_is_made_of_the_answers(server, faces, tmp_path):
    describe.main(flags(server, faces))
    assert (
        prepare(["conversations", f"--src={tmp_path / 'out.jsonl'}", f"--images={faces}", f"--dst={tmp_path / 's'}"])
        == 0
    )
    store = ConversationStore(tmp_path / "s")
    assert len(store) == TOTAL
    assert not store.manifest["rejected"]
    assert store.conversation(1).messages[1] == {"role": "assistant", "content": "Answer 1."}
    assert store.conversation(8).pictures == ((faces / "a/2.jpg").read_bytes(),)


def test_a_run_goes_on_where_the_limit_stopped_it(server, faces, capsys):
    assert describe.main(flags(server, faces, "--max-requests=5")) == 75
    out = capsys.readouterr().out
    assert f"5 answers in 5 requests; {TOTAL - 5} of {TOTAL} are still missing" in out
    assert "stopped, --max-requests=5 is reached: the same command asks for what is missing" in out
    assert describe.main(flags(server, faces)) == 0
    assert set(server.asked().values()) == {1}
    assert [line["id"] for line in lines(faces)] == [
        f"{f}#{q.name}" for f, *_ in ROWS for q in prompts.load().questions
    ]
    assert describe.main(flags(server, faces)) == 0  # nothing is left to ask
    assert len(server.requests) == TOTAL


def test_a_line_that_a_kill_cut_short_is_asked_again(server, faces):
    describe.main(flags(server, faces))
    file = faces.parent / "out.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    server.requests.clear()
    assert describe.main(flags(server, faces)) == 0
    assert len(server.requests) == 1
    assert [line["id"] for line in lines(faces)] == [json.loads(line)["id"] for line in whole.splitlines()]


def test_a_killed_run_asks_nothing_twice_and_loses_nothing(server, faces):
    """The process is killed while the endpoint thinks about the fifth question; four answers are on the disk."""
    reached = threading.Event()

    def reply(number, request):
        if number == 4:
            reached.set()
            time.sleep(2)
        return answer(f"Answer {number}.")

    server.reply = reply
    command = [sys.executable, "-m", "fvjax.data.describe", *flags(server, faces)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, stdout=subprocess.DEVNULL)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines(faces)
    assert [line["conversations"][1]["value"] for line in before] == [f"Answer {n}." for n in range(4)]
    assert describe.main(flags(server, faces)) == 0
    assert lines(faces)[:4] == before
    assert len({line["id"] for line in lines(faces)}) == len(lines(faces)) == TOTAL
    twice = [question for question, times in server.asked().items() if times > 1]
    assert twice == [json.dumps(server.requests[4]["messages"][1])]  # its answer never arrived


def test_several_requests_at_a_time(server, faces):
    at_once, most = Counter(), []

    def reply(number, request):
        at_once["now"] += 1
        most.append(at_once["now"])
        time.sleep(0.05)
        at_once["now"] -= 1
        return answer(f"Answer {number}.")

    server.reply = reply
    assert describe.main(flags(server, faces, "--parallel=3")) == 0
    assert max(most) == 3
    assert set(server.asked().values()) == {1}
    assert len({line["id"] for line in lines(faces)}) == TOTAL


HTML = b"<!doctype html><html><body>Please log in</body></html>"
NONSENSE = {
    "not JSON": (200, b"{"),
    "a page of HTML": (200, HTML),
    "no choices": (200, b'{"choices": []}'),
    "an empty answer": answer("  \n"),
    "cut off at --max-tokens": answer("A long", "length"),
    "withheld by the endpoint's filter": answer("", "content_filter"),
    "special token in a text": answer("see <|im_end|>"),
    "<image> outside a question": answer("see <image>"),
    "a reply of more than 1048576 bytes": (200, b'{"choices": "' + b"x" * (1 << 20) + b'"}'),
    "HTTP status 400": (400, b"no"),
    "broken characters": (200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
}


def test_unusable_replies_are_counted_and_asked_for_again(server, faces, capsys):
    unusable = list(NONSENSE.values())
    server.reply = lambda number, _: unusable[number] if number < len(unusable) else answer("Fine.")
    assert describe.main(flags(server, faces, "--max-failures=99")) == 75
    out = capsys.readouterr().out
    assert f"{len(unusable)} questions without a usable answer: " in out
    for reason in NONSENSE:
        assert f"1 {reason}" in out
    assert len(lines(faces)) == TOTAL - len(unusable)
    assert describe.main(flags(server, faces)) == 0
    assert len(lines(faces)) == TOTAL
    assert {line["conversations"][1]["value"] for line in lines(faces)} == {"Fine."}


def test_more_forms_without_choices(server, faces, capsys):
    forms = [b"[]", b"null", b'{"choices": {}}', b'{"choices": [3]}', b'{"choices": [{"message": {}}]}', b"[" * 100_000]
    server.reply = lambda number, _: (200, forms[number]) if number < len(forms) else answer("Fine.")
    assert describe.main(flags(server, faces)) == 75
    assert "5 no choices, 1 not JSON" in capsys.readouterr().out


def test_too_many_failures_in_a_row_stop_the_run(server, faces, capsys):
    server.reply = lambda number, _: answer("Fine.") if number in (0, 1, 4) else (200, HTML)
    line = fails(capsys, flags(server, faces, "--max-failures=3"))
    assert line == (
        "error: 3 questions in a row without an answer, the last one: a page of HTML; check the endpoint and run the "
        "same command again"
    )
    assert len(server.requests) == 8  # two answers, two failures, an answer, three failures
    assert len(lines(faces)) == 3


def test_a_busy_endpoint_is_asked_again_later(server, faces, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(client, "LONGEST_WAIT", 60.0)
    fakes = SimpleNamespace(Event=lambda: FakeEvent(waits), Lock=threading.Lock)
    monkeypatch.setattr(client, "threading", fakes)
    busy = [(429, b"", {"Retry-After": "7"}), (503, b""), (500, b""), (429, b"", {"Retry-After": "999999"})]
    server.reply = lambda number, _: busy[number] if number < len(busy) else answer("Fine.")
    assert describe.main(flags(server, faces)) == 0
    assert waits[:6] == [0, 7, 2, 4, 60, 0]
    assert f"{TOTAL} answers in {TOTAL + 4} requests" in capsys.readouterr().out


class FakeEvent:
    """An event that notes how long it is waited for."""

    def __init__(self, waits):
        self.waits = waits

    def wait(self, seconds):
        self.waits.append(seconds)
        return False

    def set(self):
        pass


def test_retries_count_as_requests_and_end(server, faces, capsys):
    server.reply = lambda number, _: (503, b"")
    assert describe.main(flags(server, faces, "--max-requests=7")) == 75
    assert len(server.requests) == 7
    assert "1 questions without a usable answer: 1 HTTP status 503" in capsys.readouterr().out  # after five requests


def test_a_slow_endpoint_is_not_waited_for(server, faces, capsys, monkeypatch):
    monkeypatch.setattr(client, "RETRIES", 0)

    released = threading.Event()

    def reply(number, _):
        if number == 0:
            released.wait(20)
        if number == 1:  # every piece comes in time, the whole does not
            return 200, b"{" * 20, {"Pause": "0.1"}
        return answer("Fine.")

    server.reply = reply
    begun = time.monotonic()
    assert describe.main(flags(server, faces, "--timeout=0.3")) == 75
    assert time.monotonic() - begun < 5
    released.set()
    assert "2 no reply in time" in capsys.readouterr().out
    assert len(lines(faces)) == TOTAL - 2


def test_answers_on_their_way_are_kept_when_a_run_stops(server, faces, capsys):
    def reply(number, _):
        time.sleep(0.3)
        return answer("Paid for.")

    server.reply = reply
    assert describe.main(flags(server, faces, "--max-requests=1", "--parallel=2")) == 75
    assert [line["conversations"][1]["value"] for line in lines(faces)] == ["Paid for."]
    assert "1 answers in 1 requests" in capsys.readouterr().out


def test_an_endpoint_that_is_not_there(server, faces, capsys, monkeypatch):
    server.http.shutdown()
    server.http.server_close()
    line = fails(capsys, flags(server, faces, "--max-failures=2"))
    assert "2 questions in a row without an answer, the last one: no connection" in line
    server.http.shutdown = lambda: None


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, client.KEY_VARIABLE), (404, "--url and --model"), (302, "--url and --model")]
)
def test_refusals_end_the_run_at_once(server, faces, capsys, status, remedy):
    server.reply = lambda number, _: (status, b"", {"Location": f"{server.url}/elsewhere"})
    line = fails(capsys, flags(server, faces))
    assert line == f"error: {server.url}/chat/completions: HTTP status {status}; check {remedy}"
    assert len(server.requests) == 1  # redirects are not followed


def test_the_key_is_in_one_header_and_nowhere_else(server, faces, capsys, monkeypatch):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    replies = [answer(f"Your key is {KEY}."), (400, KEY.encode()), (200, KEY.encode())]
    server.reply = lambda number, _: replies[number] if number < len(replies) else answer("Fine.")
    assert describe.main(flags(server, faces)) == 75
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    server.reply = lambda number, _: (401, KEY.encode())
    assert describe.main(flags(server, faces)) == 2
    printed = capsys.readouterr()
    assert "1 the answer has the key in it" in printed.out
    assert f"with the key of {client.KEY_VARIABLE}" in printed.out
    assert KEY not in printed.out + printed.err
    files = [file for file in faces.parent.rglob("*") if file.is_file()]
    assert len(files) == 5
    assert not any(KEY.encode() in file.read_bytes() for file in files)


@pytest.mark.parametrize("key", ["sk-a b", "sk-ä", "sk-a\nX: y"])
def test_a_key_that_no_header_can_carry_is_not_shown(server, faces, capsys, monkeypatch, key):
    monkeypatch.setenv(client.KEY_VARIABLE, key)
    line = fails(capsys, flags(server, faces))
    assert line.startswith(f"error: {client.KEY_VARIABLE}: ")
    assert "sk-a" not in line
    assert not server.requests


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://example.org/v1", "the key would travel unencrypted"),
        ("file:///etc/passwd", "expected http or https"),
        ("https://user:pass@example.org/v1", "belongs in no address"),
        ("https://example.org/v1?key=1", "belongs in no address"),
        ("https://exämple.org/v1", "expected http or https"),
        ("https://example.org:x/v1", "not an address"),
        ("example.org", "expected http or https"),
    ],
)
def test_addresses_that_are_refused(server, faces, capsys, monkeypatch, url, problem):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    assert problem in fails(capsys, flags(server, faces, f"--url={url}"))
    assert not (faces.parent / "out.jsonl").exists()


def test_what_is_for_this_machine_passes_no_proxy(server, faces, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert describe.main(flags(server, faces)) == 0


def test_pictures_that_cannot_be_sent_are_counted(server, faces, capsys):
    (faces / "a/1.jpg").write_bytes(b"\xff\xd8 broken")
    assert describe.main(flags(server, faces)) == 0
    assert f"{QUESTIONS} questions left out: {QUESTIONS} unreadable picture" in capsys.readouterr().out
    assert len(server.requests) == QUESTIONS
    (faces / "a/1.jpg").unlink()
    assert describe.main(flags(server, faces)) == 0
    assert f"{QUESTIONS} missing picture" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--model=writer-2", "--max-tokens=9", "--labels", "--prompts"])
def test_answers_made_with_other_settings_are_not_mixed(server, faces, capsys, tmp_path, flag):
    describe.main(flags(server, faces, "--max-requests=3"))
    other = tmp_path / "other"
    if flag == "--labels":
        text = (tmp_path / "labels.csv").read_text().replace("Female", "Male")
    else:
        text = prompts.FILE.read_text().replace("Be precise", "Be very precise")
    other.write_text(text)
    name = flag.split("=")[0].removeprefix("--").replace("-", "_")
    line = fails(capsys, flags(server, faces, flag if "=" in flag else f"{flag}={other}"))
    assert f"it was made with other {name}; choose another --dst" in line
    assert len(server.requests) == 3
    (tmp_path / "out.jsonl.settings.json").unlink()
    assert "it is not known what made it" in fails(capsys, flags(server, faces))


@pytest.mark.parametrize("change", [{"file": "b.jpg"}, {"age": "30-39"}, {"gender": "Female"}, {"race": "Black"}])
def test_every_part_of_a_label_decides_the_answers(change):
    label, texts = Label("a.jpg", "20-29", "Male", "White"), prompts.load()
    settings = [answers.settings([one], texts, "writer", 9) for one in (label, replace(label, **change))]
    assert settings[0]["labels"] != settings[1]["labels"]


def test_a_damaged_output_is_named(server, faces, capsys):
    describe.main(flags(server, faces, "--max-requests=3"))
    file = faces.parent / "out.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text(rows[0] + "{}\n" + rows[2])
    assert "out.jsonl line 2: damaged" in fails(capsys, flags(server, faces))
    file.write_text(rows[0] + rows[0])
    assert "out.jsonl line 2: the id 'a/1.jpg#demographic attributes' is there twice" in fails(
        capsys, flags(server, faces)
    )


def test_two_runs_do_not_write_to_one_file(server, faces, capsys):
    problems = []

    def reply(number, _):
        if number == 0:
            problems.append(fails(capsys, flags(server, faces)))
        return answer("Fine.")

    server.reply = reply
    assert describe.main(flags(server, faces)) == 0
    assert "another process is writing to it" in problems[0]


def test_a_full_disk_leaves_whole_lines(server, faces, capsys, monkeypatch):
    from fvjax.data.describing import answers

    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(answers.os, "fsync", full)
    line = fails(capsys, flags(server, faces))
    assert "out.jsonl: No space left on device; free space there" in line
    assert len(lines(faces)) == 3
    monkeypatch.undo()
    assert describe.main(flags(server, faces)) == 0
    assert len({row["id"] for row in lines(faces)}) == TOTAL


@pytest.mark.parametrize(
    "flag", ["--max-requests=0", "--max-tokens=0", "--max-failures=0", "--parallel=0", "--timeout=nan"]
)
def test_limits_are_above_zero(server, faces, capsys, flag):
    assert f"error: {flag}: expected a number above 0" in fails(capsys, flags(server, faces, flag))


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def test_the_questions_are_those_of_fairfacegpt():
    questions = prompts.load().questions
    assert [question.name for question in questions] == [
        "demographic attributes", "facial structure", "skin texture", "expression and emotion",
        "lighting and image quality", "face pose", "forensic considerations", "detail",
    ]  # fmt: skip
    for question in questions[:-1]:
        assert question.stored == f"Describe the {question.name} of the image based on the visual information."
        assert set(prompts.PLACEHOLDERS) <= {
            name.strip("{}") for name in question.request.split() for name in [name.strip(",.")]
        }


QUESTION = '[[questions]]\nname = "q"\nstored = "{}"\nrequest = "A {{gender}}. {}"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            'system = "s"\n' + QUESTION.format("Describe this woman.", ""),
            "question 1: the stored question says 'woman'",
        ),
        ('system = "s"\n' + QUESTION.format("Is an East Asian face shown?", ""), "the stored question says 'East'"),
        ('system = "s"\n' + QUESTION.format("Why 20-29?", ""), "the stored question says '20-29'"),
        ('system = "s"\n' + QUESTION.format("How many years old?", ""), "the stored question says 'years old'"),
        ('system = "s"\n' + QUESTION.format("Describe the {gender}.", ""), "labels belong in `request` only"),
        ('system = "s"\n' + QUESTION.format("Describe.", "{name}"), "unknown placeholder 'name'"),
        ('system = "s"\n' + QUESTION.format("Describe.", "{gender.__class__}"), "unknown placeholder"),
        ('system = "s"\n' + QUESTION.format("Describe.", "") * 2, "must have names, each another one"),
        ('system = "s"\n' + QUESTION.format(" ", ""), "stored must be a text"),
        ('system = "s"\nextra = 1\n' + QUESTION.format("Describe.", ""), "expected exactly the text system and tables"),
        ('system = "s"\nquestions = [3]\n', "question 1: expected exactly name, stored, request"),
        ("system = ", "not TOML"),
    ],
)
def test_mistakes_in_prompts(tmp_path, text, problem):
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"p\.toml: ") as error:
        prompts.load(file)
    assert problem in str(error.value)


def test_own_prompts_are_asked(server, faces, tmp_path):
    (tmp_path / "p.toml").write_text('system = "s"\n' + QUESTION.format("Describe the hair.", "Which hair?"))
    assert describe.main(flags(server, faces, f"--prompts={tmp_path / 'p.toml'}")) == 0
    texts = [request["messages"][1]["content"][1]["text"] for request in server.requests]
    assert texts == ["A boy. Which hair?", "A woman. Which hair?"]
    assert lines(faces)[0]["conversations"][0]["value"] == "<image>\nDescribe the hair."


def test_mangled_ages_are_repaired_only_when_asked(server, faces, capsys, tmp_path):
    text = (tmp_path / "labels.csv").read_text().replace("3-9", "03-Sep")
    (tmp_path / "labels.csv").write_text(text)
    assert "--repair-ages reads such dates as ages" in fails(capsys, flags(server, faces))
    assert describe.main([*flags(server, faces), "--repair-ages"]) == 0
    assert "3-9 years old" in server.requests[0]["messages"][1]["content"][1]["text"]
