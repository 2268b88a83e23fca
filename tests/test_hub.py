"""Test downloads through huggingface_hub itself, from a small server in this process that speaks the Hub's protocol."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.reference.recipe import GOLDEN, write_checkpoint
from tests.test_convert import shard
from weights_convert import read
from weights_convert.read import open_file

TINY = GOLDEN / "internvl_tiny"
REPO, COMMIT = "someone/tiny-vl", "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One repository. `cut`: file name -> bytes after which its connection breaks, once; `gone`: files that are
    missing.
    """

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.gone = files, {}, set()
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: bytes, **headers):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, path: str) -> str:
        if REPO not in path:
            return "RepoNotFound"
        return "EntryNotFound" if COMMIT in path else "RevisionNotFound"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, span = self.path.split("?")[0], self.headers.get("Range")
        self.server.asked.append((self.command, path, span))
        files = self.server.files
        if path in (
            f"/api/models/{REPO}",
            f"/api/models/{REPO}/revision/{COMMIT}",
            f"/api/models/{REPO}/revision/main",
        ):
            known = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self.answer(200, json.dumps(known).encode(), Content_Type="application/json")
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in files or name in self.server.gone:
            return self.answer(404, b"", X_Error_Code=self.missing(path))
        data, start = files[name], 0
        etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if span:
            start = int(re.fullmatch(r"bytes=(\d+)-.*", span)[1])
            etag["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in self.server.cut:
            stop = self.server.cut.pop(name)
            self.send_response(206 if span else 200)
            for key, value in {"Content-Length": str(len(data) - start), **etag}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data[start : start + stop])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(206 if span else 200, data[start:], **etag)


@pytest.fixture
def hub(tmp_path):
    """Make the tiny InternVL2 in two shards, with files that must not be downloaded."""
    src = tmp_path / "repository"
    src.mkdir()
    for name in ("config.json", "model.safetensors"):
        (src / name).write_bytes((TINY / name).read_bytes())
    shard(src)
    files = {p.name: p.read_bytes() for p in src.iterdir()}
    files |= {"tokenizer.model": b"pieces", "modeling_internvl_chat.py": b"raise SystemExit", "README.md": b"#"}
    files |= {"pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"another", "runs/events.json": b"{}"}
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def call(hub, tmp_path):
    def call(*arguments, **env):
        set_here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "cache")}
        set_here |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        command = [sys.executable, "-m", "weights_convert", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=clean | set_here | env)

    return call


def downloaded(hub):
    """List the files whose contents were sent, in order."""
    paths = [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]
    return [path.rpartition(f"/{COMMIT}/")[2] for path in paths]


def test_a_repository_at_its_current_commit_and_again_offline(hub, call, tmp_path):
    done = call(f"--src={REPO}", f"--dst={tmp_path / 'ours'}", "--kind=vlm")
    assert done.returncode == 0, done.stderr
    assert f"{REPO}: --revision={COMMIT}\n" in done.stdout
    section = json.loads((tmp_path / "ours/config.json").read_text())["fvjax"]
    assert (section["source"], section["revision"]) == (REPO, COMMIT)
    assert (tmp_path / "ours/tokenizer.model").read_bytes() == b"pieces"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    wanted = {"config.json", "model.safetensors.index.json", "tokenizer.model", *shards}
    assert set(downloaded(hub)) == wanted, "never pickles, code or other folders"
    expected = read(TINY, "vlm")[2]
    for name, leaf in read(tmp_path / "ours", "vlm")[2].items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)

    hub.asked.clear()
    again = [f"--src={REPO}", f"--dst={tmp_path / 'again'}"]
    done = call(*again, f"--revision={COMMIT}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    done = call(f"--src={REPO}", f"--dst={tmp_path / 'not'}", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{REPO} is not a directory here, the Hub did not answer, and only with --revision=COMMIT is" in done.stderr


def test_an_interrupted_download_goes_on(hub, call, tmp_path):
    """A broken connection continues where it broke. After a failed command, received files are not requested again.

    huggingface_hub writes 10 MiB at a time, so the model's vocabulary is large enough for a larger shard.
    """
    config = json.loads((TINY / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 50_000
    shapes = {key: tensor.shape for key, tensor in open_file(TINY / "model.safetensors").items()}
    tables = ("language_model.model.tok_embeddings.weight", "language_model.output.weight")
    src = write_checkpoint(tmp_path / "large", config, shapes | {key: (50_000, 64) for key in tables})
    shard(src)
    hub.files.update({p.name: p.read_bytes() for p in src.iterdir()})
    shards = sorted(src.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    first, second = shards[-1].name, shards[0].name
    command = f"--src={REPO}", f"--dst={tmp_path / 'ours'}", f"--revision={COMMIT}"
    hub.cut[first], hub.gone = 11_000_000, {second}
    done = call(*command)
    assert (done.returncode, done.stderr.splitlines()[-1][:15]) == (2, "weights_convert"), done.stderr
    spans = [span for method, path, span in hub.asked if method == "GET" and path.endswith(first)]
    assert spans == [None, f"bytes={10 * 2**20}-"]
    assert second not in downloaded(hub)
    assert not (tmp_path / "ours").exists()
    hub.gone = set()
    hub.asked.clear()
    done = call(*command)
    assert done.returncode == 0, done.stderr
    again = downloaded(hub)  # small files are downloaded beside the shards: one may have been requested already
    assert second in again
    assert first not in again
    expected = read(src)[2]
    for name, leaf in read(tmp_path / "ours")[2].items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--src=someone/nothing"], "someone/nothing: no such repository on the Hub, or it is private"),
        ([f"--src={REPO}", f"--revision={COMMIT[::-1]}"], f"{REPO}: no such commit {COMMIT[::-1]} on the Hub"),
        ([f"--src={REPO}", "--revision=main"], "--revision=main is not a commit hash (40 hex digits)"),
        ([f"--src={TINY}", f"--revision={COMMIT}"], "--revision belongs to a repository, but"),
    ],
)
def test_what_is_not_there(call, tmp_path, arguments, message):
    done = call(*arguments, f"--dst={tmp_path / 'ours'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "ours").exists()
