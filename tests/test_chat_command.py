"""Test `python -m fvjax.chat`: one answer, a dialogue, a folder of pictures, and mistakes.

Where the model's words do not matter, `spoken` puts others into its mouth.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvjax
from fvjax import chat, chat_model
from tests import tiny_chat
from tests.full_disk import PROBLEM, files_up_to
from tests.parity.test_conversation import TINY
from tests.test_images import png_that_claims


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_chat.write(tmp_path_factory.mktemp("chat"), template="internvl2_5_hf")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Return a folder of three pictures of different sizes and kinds, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(("a.jpg", "b.PNG", "c.webp")):
        pixels = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, lossless=True)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def spoken(monkeypatch):
    """Let the model answer "<number of pictures> é <number of messages>", and return what it was asked.

    A question that ends in "!" is refused.
    """
    asked = []

    def stream(self, messages, images, *values, **named):
        settings = dict(zip(DEFAULTS, values)) | named
        asked.append(([dict(m) for m in messages], [image.shape for image in images], settings, self.settings))
        if messages[-1]["content"].endswith("!"):
            raise ValueError("do not shout")
        yield from (f"{len(images)} ", "é ", f"{len(messages)}")

    monkeypatch.setattr(chat_model.ChatModel, "stream", stream)
    return asked


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = chat.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def talk(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


DEFAULTS = {"max_tokens": 512, "temperature": 0.0, "top_p": 1.0, "seed": 0}


# ---- one answer


def test_the_answer_is_the_models(checkpoint, pictures, capsys):
    model = fvjax.load(checkpoint, "chat")
    image = np.asarray(Image.open(pictures / "b.PNG"))
    messages = [{"role": "user", "content": "<image>\nHair?"}]
    arguments = f"--model={checkpoint}", f"--image={pictures / 'b.PNG'}", "Hair?", "--max-tokens=8"
    expected = model.generate(messages, [image], max_tokens=8)
    assert run(capsys, *arguments) == (0, f"{expected}\n", "")
    sampled = model.generate(messages, [image], max_tokens=8, temperature=1.5, top_p=0.9, seed=4)
    assert sampled != expected
    code, out, _ = run(capsys, *arguments, "--temperature=1.5", "--top-p=0.9", "--seed=4", "--json")
    assert code == 0
    assert json.loads(out) == {
        "question": "Hair?",
        "images": [str(pictures / "b.PNG")],
        "answer": sampled,
        **{"max_tokens": 8, "temperature": 1.5, "top_p": 0.9, "seed": 4},
        **{"model": str(checkpoint), "adapters": None, "dtype": None},
        **{"template": "internvl2_5_hf", "system": "default", "max_tiles": 2},
        **{"tile_rule": "each", "hide_pictures": False},
    }


def test_flags_reach_the_model(checkpoint, pictures, spoken, capsys):
    def asked(*flags):
        spoken.clear()
        assert run(capsys, f"--model={checkpoint}", "Q", *flags)[0] == 0
        (one,) = spoken
        return one

    messages, shapes, settings, of_chat = asked()
    assert messages == [{"role": "user", "content": "Q"}]
    assert (shapes, settings) == ([], DEFAULTS)
    assert of_chat == chat_model.Chat("internvl2_5_hf", max_tiles=2)
    assert asked("--max-tokens=3")[2] == DEFAULTS | {"max_tokens": 3}
    assert asked("--temperature=0.5")[2] == DEFAULTS | {"temperature": 0.5}
    assert asked("--top-p=0.5")[2] == DEFAULTS | {"top_p": 0.5}
    assert asked("--seed=5")[2] == DEFAULTS | {"seed": 5}
    assert asked("--system=Be brief.")[3].system == "Be brief."
    assert asked("--system=")[3].system is None
    assert asked("--template=internvl2_5")[3].template == "internvl2_5"
    assert asked("--max-tiles=7")[3].max_tiles == 7
    messages, shapes, *_ = asked(f"--image={pictures / 'a.jpg'}", f"--image={pictures / 'c.webp'}")
    assert messages == [{"role": "user", "content": "<image>\n<image>\nQ"}]
    assert shapes == [(30, 40, 3), (32, 40, 3)]


def test_adapters_and_dtype_reach_the_model(spoken, monkeypatch, capsys, tmp_path):
    """Adapters are a directory or a file."""
    shutil.copytree(TINY / "remote", tmp_path / "model")
    (tmp_path / "model/config.json").write_text((TINY / "hf/config.json").read_text())
    loaded = []
    ready = fvjax.load(tiny_chat.write(tmp_path / "ready"), "chat")
    monkeypatch.setattr(chat.api, "load", lambda path, **options: loaded.append((path, options)) or ready)
    for flags in ([], ["--adapters=x/a.safetensors", "--dtype=bfloat16"]):
        assert run(capsys, f"--model={tmp_path / 'model'}", "Q", *flags)[0] == 0
    plain = {"scenario": "chat", "adapters": None, "dtype": "float32"}
    adapted = {"scenario": "chat", "adapters": Path("x/a.safetensors"), "dtype": "bfloat16"}
    assert loaded == [(tmp_path / "model", plain), (tmp_path / "model", adapted)]


def test_where_pictures_stand():
    assert chat.question("Q", 0)["content"] == "Q"
    assert chat.question("Q", 2)["content"] == "<image>\n<image>\nQ"
    assert chat.question("Is <image> like <image>?", 2)["content"] == "Is <image> like <image>?"
    with pytest.raises(ValueError, match="the question has 1 <image>, and there are 2 pictures; give as many of each"):
        chat.question("Is <image> like?", 2)


def test_pictures_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert chat.read_picture(tmp_path / "turned.jpg").shape == (40, 20, 3)


# ---- mistakes


def fails(capsys, *arguments) -> str:
    """Run the command, which must fail with one line and print nothing else; return the line."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fvjax: error: ")
    return err.removeprefix("fvjax: error: ").rstrip()


def test_mistakes_of_the_model(checkpoint, tmp_path, capsys):
    line = fails(capsys, f"--model={tmp_path}", "Q")
    assert line == f"{tmp_path}: no config.json; --model is a checkpoint or the work directory of a run"
    assert "has no tokenizer" in fails(capsys, f"--model={TINY / 'remote'}")
    common = f"--model={checkpoint}", "Q"
    assert "its chat template 'x' is not known" in fails(capsys, *common, "--template=x")
    assert "1 to 0 tiles a picture" in fails(capsys, *common, "--max-tiles=0")
    assert "max_tokens=0, temperature=0.0, top_p=1.0: out of range" in fails(capsys, *common, "--max-tokens=0")
    assert "has no adapter_model.safetensors" in fails(capsys, *common, f"--adapters={tmp_path}")


def test_a_work_directory_has_its_own_dtype_and_adapters(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"trainable": []}')
    assert "is a run's work directory, which says its own dtype" in fails(
        capsys, f"--model={tmp_path}", "Q", "--dtype=float32"
    )
    assert "is a workdir, which has its own adapters" in fails(capsys, f"--model={tmp_path}", "Q", "--adapters=a")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folder=f", "Q"], "--folder: needs a question and --out=FILE.jsonl"),
        (["--folder=f", "--out=o"], "--folder: needs a question and --out=FILE.jsonl"),
        (["--folder=f", "--out=o", "Q", "--json"], "leave --image and --json away"),
        (["--folder=f", "--out=o", "Q", "--image=a.jpg"], "leave --image and --json away"),
        (["--out=o", "Q"], "--out: is of --folder"),
        (["--json"], "--json: needs a question"),
    ],
)
def test_flags_that_do_not_go_together(checkpoint, capsys, flags, message):
    assert message in fails(capsys, f"--model={checkpoint}", *flags)


def test_pictures_that_cannot_be_read(checkpoint, tmp_path, capsys):
    common = f"--model={checkpoint}", "Q"
    none, text, large = tmp_path / "none.png", tmp_path / "text.png", tmp_path / "large.png"
    assert fails(capsys, *common, f"--image={none}") == f"{none}: no such file"
    text.write_text("no picture")
    assert fails(capsys, *common, f"--image={text}").startswith(f"{text}: cannot be read as an image")
    large.write_bytes(png_that_claims(10_000, 10_000))
    line = fails(capsys, *common, f"--image={large}")
    assert line.startswith(f"{large}: cannot be read as an image (10000x10000 pixels in the header, refused")


def test_ctrl_c_is_no_traceback(checkpoint, monkeypatch, capsys):
    def interrupted(*_, **__):
        yield "Bl"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_model.ChatModel, "stream", interrupted)
    assert run(capsys, f"--model={checkpoint}", "Q") == (130, "Bl\n", "")


# ---- a dialogue


def test_a_dialogue(checkpoint, pictures, spoken, monkeypatch, capsys):
    """Pictures belong to the question after them, and the model sees all questions and answers before."""
    talk(
        monkeypatch,
        *("One?", "", f"/image {pictures / 'a.jpg'}", "Two?", "/new", f"/image  {pictures / 'c.webp'}", "Three?"),
        *("/quit", "Four?"),
    )
    code, out, err = run(capsys, f"--model={checkpoint}", f"--image={pictures / 'b.PNG'}")
    assert (code, err) == (0, "")
    assert "/image FILE adds a picture to it, /new starts again, /quit ends." in out
    assert out.count("é") == 3
    assert "1 é 1\n" in out
    assert "2 é 3\n" in out
    one, two = {"role": "user", "content": "<image>\nOne?"}, {"role": "user", "content": "<image>\nTwo?"}
    answer = {"role": "assistant", "content": "1 é 1"}
    assert spoken[0][:2] == ([one], [(31, 40, 3)])
    assert spoken[1][:2] == ([one, answer, two], [(31, 40, 3), (30, 40, 3)])
    assert spoken[2][:2] == ([{"role": "user", "content": "<image>\nThree?"}], [(32, 40, 3)])
    assert len(spoken) == 3
    assert spoken[0][2] == DEFAULTS


def test_errors_keep_the_dialogue_alive(checkpoint, pictures, spoken, monkeypatch, capsys):
    """A question that is refused is forgotten; its picture stays for the next question."""
    none = pictures / "none.png"
    talk(
        monkeypatch,
        *(
            "One?",
            f"/image {none}",
            f"/image {pictures / 'a.jpg'}",
            "Two!",
            "Is <image> <image>?",
            "/imagine",
            "/image",
        ),
        "Three?",
    )
    code, out, err = run(capsys, f"--model={checkpoint}")
    assert (code, err) == (0, ""), "the end of standard input ends it"
    assert f"{none}: no such file" in out
    assert "do not shout" in out
    assert "the question has 2 <image>, and there are 1 pictures" in out
    assert "/imagine: there are /image FILE, /new and /quit" in out
    assert "/image: there are /image FILE, /new and /quit" in out
    assert [m["content"] for m in spoken[-1][0]] == ["One?", "0 é 1", "<image>\nThree?"]
    assert spoken[-1][1] == [(30, 40, 3)]


def test_a_file_that_may_not_be_read_keeps_it_alive(checkpoint, spoken, monkeypatch, capsys):
    talk(monkeypatch, "/image " + "a" * 5000, "One?")
    code, out, _ = run(capsys, f"--model={checkpoint}")
    assert code == 0
    assert "name too long" in out or "no such file" in out  # the first until Python 3.13
    assert "0 é 1\n" in out


# ---- a folder


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def ask_folder(checkpoint, pictures, tmp_path, capsys):
    """Return a function (question, more flags) -> (exit code, output, errors) of a run over the pictures."""

    def ask(text="Hair?", *flags):
        common = f"--model={checkpoint}", f"--folder={pictures}", f"--out={tmp_path / 'answers.jsonl'}"
        return run(capsys, *common, text, *flags)

    return ask


def test_every_picture_of_a_folder(ask_folder, checkpoint, tmp_path, spoken):
    out = tmp_path / "answers.jsonl"
    code, said, err = ask_folder("Hair?", "--max-tokens=9")
    assert (code, err) == (0, "")
    assert said == f"{out}: 3 pictures, 0 of them done before, 0 not readable\n"
    lines = lines_of(out)
    assert [line["image"] for line in lines] == ["a.jpg", "b.PNG", "c.webp"]
    assert lines[1] == {
        "image": "b.PNG",
        "answer": "1 é 1",
        "question": "Hair?",
        **DEFAULTS,
        "max_tokens": 9,
        **{"model": str(checkpoint), "adapters": None, "dtype": None, **vars(spoken[0][3])},
    }
    assert [shapes for _, shapes, *_ in spoken] == [[(30 + i, 40, 3)] for i in range(3)]
    assert spoken[0][0] == [{"role": "user", "content": "<image>\nHair?"}]


def test_an_interrupted_folder_goes_on(ask_folder, tmp_path, spoken):
    """A line that a kill cut short is asked about again, other lines are not."""
    out = tmp_path / "answers.jsonl"
    ask_folder()
    whole = out.read_text()
    first, second, _ = whole.split("\n")[:3]
    out.write_text(f"{first}\n{second[:40]}")
    spoken.clear()
    assert ask_folder() == (0, f"{out}: 3 pictures, 1 of them done before, 0 not readable\n", "")
    assert [shapes for _, shapes, *_ in spoken] == [[(31, 40, 3)], [(32, 40, 3)]]
    assert out.read_text() == whole
    spoken.clear()
    assert ask_folder() == (0, f"{out}: 3 pictures, 3 of them done before, 0 not readable\n", "")
    assert (spoken, out.read_text()) == ([], whole)


def test_a_full_disk_keeps_the_answers_so_far(ask_folder, tmp_path, spoken):
    """The disk is full in the middle of the second line's é; the same command goes on when there is room."""
    out = tmp_path / "answers.jsonl"
    ask_folder()
    whole = out.read_bytes()
    out.unlink()
    with files_up_to(whole.index("é".encode(), whole.index(b"\n")) + 1):
        code, said, err = ask_folder()
    assert (code, said, err) == (2, "", f"fvjax: error: {out}: {PROBLEM}\n")
    assert whole.startswith(out.read_bytes())
    spoken.clear()
    assert ask_folder() == (0, f"{out}: 3 pictures, 1 of them done before, 0 not readable\n", "")
    assert len(spoken) == 2
    assert out.read_bytes() == whole


def test_ctrl_c_keeps_the_answers_so_far(ask_folder, tmp_path, monkeypatch):
    left = ["blond\u2028\x85\n"]  # line ends of Unicode are no ends of JSON lines

    def generate(*_, **__):
        if not left:
            raise KeyboardInterrupt
        return left.pop()

    monkeypatch.setattr(chat_model.ChatModel, "generate", generate)
    assert ask_folder()[0] == 130
    assert [line["answer"] for line in lines_of(tmp_path / "answers.jsonl")] == ["blond\u2028\x85\n"]
    left += ["dark", "red"]
    assert ask_folder()[0] == 0
    assert [line["answer"] for line in lines_of(tmp_path / "answers.jsonl")] == ["blond\u2028\x85\n", "red", "dark"]


@pytest.mark.parametrize(
    ("text", "flags", "key"),
    [
        ("Skin?", [], "question"),
        ("Hair?", ["--max-tokens=9"], "max_tokens"),
        ("Hair?", ["--system=Be brief."], "system"),
        ("Hair?", ["--max-tiles=1"], "max_tiles"),
        ("Hair?", ["--dtype=bfloat16"], "dtype"),
    ],
)
def test_answers_to_another_question_are_not_mixed(ask_folder, tmp_path, spoken, text, flags, key):
    out = tmp_path / "answers.jsonl"
    ask_folder()
    before = out.read_text()
    code, _, err = ask_folder(text, *flags)
    assert (code, err) == (2, f"fvjax: error: {out} line 1: is of another {key}; choose another --out\n")
    assert out.read_text() == before


@pytest.mark.parametrize("line", ["{}", "[1]", "no JSON"])
def test_a_file_of_something_else_is_not_touched(ask_folder, tmp_path, spoken, line):
    out = tmp_path / "answers.jsonl"
    out.write_text(f"{line}\n")
    code, _, err = ask_folder()
    assert (code, err) == (2, f"fvjax: error: {out} line 1: no answer about a picture; choose another --out\n")
    assert out.read_text() == f"{line}\n"


def test_unreadable_pictures_have_a_line_and_are_counted(ask_folder, pictures, tmp_path, spoken):
    (pictures / "b.PNG").write_bytes(png_that_claims(10_000, 10_000))
    (pictures / "d.jpeg").mkdir()
    out = tmp_path / "answers.jsonl"
    assert ask_folder() == (0, f"{out}: 4 pictures, 0 of them done before, 2 not readable\n", "")
    lines = {line["image"]: line for line in lines_of(out)}
    assert lines["b.PNG"]["error"].startswith(f"{pictures / 'b.PNG'}: cannot be read as an image (10000x10000 pixels")
    assert "answer" not in lines["b.PNG"]
    assert lines["d.jpeg"]["error"] == f"{pictures / 'd.jpeg'}: no such file"
    assert lines["c.webp"]["answer"] == "1 é 1"
    assert ask_folder()[1] == f"{out}: 4 pictures, 4 of them done before, 2 not readable\n"


def test_a_question_that_fails_is_not_the_pictures_fault(ask_folder, tmp_path, spoken):
    code, _, err = ask_folder("Hair!")
    assert (code, err) == (2, "fvjax: error: do not shout\n")
    assert lines_of(tmp_path / "answers.jsonl") == []


def test_folders_without_pictures(checkpoint, tmp_path, capsys):
    common = f"--model={checkpoint}", f"--out={tmp_path / 'o.jsonl'}", "Q"
    for folder in (tmp_path, tmp_path / "none"):
        assert fails(capsys, *common, f"--folder={folder}").startswith(f"{folder}: no pictures (.jpg, .jpeg, ")
    assert not (tmp_path / "o.jsonl").exists()
