"""Test the reading of a FaceXBench folder: its prompts against the golden data, and every mistake in a file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fvjax.data.readers import facexbench

GOLDEN = Path("tests/golden/facexbench_sample")
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
FILE = "celeba_single_mcq.json"


def write_pictures(src: Path) -> None:
    """Draw every picture that the JSON files of a folder name."""
    for path in (src / "benchmark").glob("*.json"):
        for question in json.loads(path.read_text())["questions"].values():
            for i, name in enumerate(question["image_paths"]):
                (src / "benchmark" / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8 + i, 8), (50 * i, 90, 10 * len(name) % 256)).save(src / "benchmark" / name)


def copy_sample(folder):
    """Put the golden questions, and pictures of our own, into a folder and return it."""
    (folder / "benchmark").mkdir()
    for path in (GOLDEN / "benchmark").glob("*.json"):
        (folder / "benchmark" / path.name).write_bytes(path.read_bytes())
    write_pictures(folder)
    return folder


@pytest.fixture
def sample(tmp_path):
    """Return a folder with the golden questions, and pictures of our own."""
    return copy_sample(tmp_path)


def question(**changes):
    out = {
        "image_paths": ["images/one.png"],
        "question_text": "Is the face young?",
        "options": ["yes", "no", "perhaps", "unclear"],
        "correct_answer_option": "B",
        "answer": "no",
    }
    out |= changes
    return {key: value for key, value in out.items() if value is not None}


def content(questions, **changes):
    out = {
        "category": "attributes_expression",
        "sub-category": "attributes",
        "num_images": "single",
        "prepend_text": "Look closely.",
        "postpend_text": "Answer with a letter.",
        "questions": questions,
    }
    return {key: value for key, value in (out | changes).items() if value is not None}


@pytest.fixture
def put(tmp_path):
    """Return a function that writes a benchmark file and returns the folder; one picture is there."""

    def write(value, name=FILE):
        (tmp_path / "benchmark/images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "benchmark/images/one.png")
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / "benchmark" / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("setting", facexbench.SETTINGS)
def test_golden_prompts(sample, setting):
    benchmark = facexbench.read(sample, setting=setting)
    assert benchmark.rejected == ()
    expected = EXPECTED[setting]["questions"]
    assert len(benchmark.questions) == len(expected) == 6
    by_key = {(q.file, q.number): q for q in benchmark.questions}
    for golden in expected:
        got = by_key[golden["file"], golden["question"]]
        n = len(golden["image_paths"])
        assert got.prompt == "<image>\n" * n + golden["prompt"]
        assert got.pictures == tuple(sample / "benchmark" / name for name in golden["image_paths"])
        assert all(path.is_file() for path in got.pictures)
        assert got.answer == golden["correct_answer_option"]


def test_what_a_question_says_of_itself(sample):
    questions = facexbench.read(sample).questions
    assert [(q.file.split("_")[1], q.number) for q in questions] == [
        (file, number) for file in ("multiple", "single", "tools.json") for number in "12"
    ]
    counted, tools = questions[3], questions[5]
    assert counted.options == ("0", "3", "1", "2")  # numbers in the file
    assert (counted.category, counted.sub_category) == ("attributes_expression", "expression")
    assert (counted.num_images, tools.num_images, len(tools.pictures)) == ("single", "zero", 1)
    assert {q.overlaps_fairface for q in questions} == {False}
    assert {q.record for q in questions} == {None}


def test_numbered_layout(sample):
    plain = facexbench.read(sample).questions
    numbered = facexbench.read(sample, layout="numbered").questions
    assert numbered[0].prompt.startswith("Image-1: <image>\nImage-2: <image>\nWhich picture shows")
    assert numbered[1].prompt.startswith("Image-1: <image>\nImage-2: <image>\nImage-3: <image>\nWhich pictures")
    assert [q.prompt for q in numbered[2:]] == [q.prompt for q in plain[2:]]  # one picture has no number
    assert facexbench.user_message("Hello", 0, "numbered") == "Hello"


def test_fairface_is_known_by_the_file_name(put):
    put(content({"1": question()}), "fairface_single_mcq_age_test.json")
    src = put(content({"1": question()}), "fairfaces.json")
    assert [q.overlaps_fairface for q in facexbench.read(src).questions] == [True, False]


def test_three_options_and_more_than_four(put):
    three = question(options=["a", "b", "c"], correct_answer_option="C")
    six = question(options=[*"uvwxyz"], correct_answer_option="D")
    answer_left_out = question(options=[*"uvwxyz"], correct_answer_option="E")
    benchmark = facexbench.read(put(content({"1": three, "2": six, "3": answer_left_out})))
    assert [q.options for q in benchmark.questions] == [("a", "b", "c"), ("u", "v", "w", "x")]
    assert benchmark.questions[0].prompt.endswith("(A) a\n(B) b\n(C) c\n")
    assert benchmark.questions[1].prompt.endswith("(C) w\n(D) x\n")
    assert benchmark.options_left_out == 2  # those of the rejected question do not count
    (rejection,) = benchmark.rejected
    assert rejection.location == f"{FILE} question 3"
    assert rejection.reason == "correct_answer_option is no option's letter: 'E', expected one of ABCD"


UNUSABLE = {
    "not an object": "B",
    "no question_text": question(question_text=None),
    "no correct_answer_option": question(correct_answer_option=None),
    "correct_answer_option is no option's letter": question(correct_answer_option="b"),
    "correct_answer_option is no option's letter ": question(correct_answer_option="AB"),
    "correct_answer_option is no option's letter  ": question(options=["x", "y", "z"], correct_answer_option="D"),
    "correct_answer_option is no option's letter   ": question(correct_answer_option=""),
    "correct_answer_option is no option's letter    ": question(correct_answer_option=2),
    "fewer than two options": question(options=["x"], correct_answer_option="A"),
    "fewer than two options ": question(options="no list"),
    "an option is neither text nor a number": question(options=["x", ["y"]]),
    "no image_paths": question(image_paths=None),
    "no image_paths ": question(image_paths=[]),
    "an image path is no text": question(image_paths=[7]),
    "missing picture": question(image_paths=["images/one.png", "images/two.png"]),
    "missing picture ": question(image_paths=["images"]),
    "missing picture  ": question(image_paths=["x" * 5000]),
    "missing picture   ": question(image_paths=["a\0b"]),
    "picture outside the folder": question(image_paths=["../secret.png"]),
    "picture outside the folder ": question(image_paths=["images/../../secret.png"]),
    "picture outside the folder  ": question(image_paths=["images/link.png"]),
    "picture outside the folder   ": question(image_paths=["/etc/hostname"]),
    "placeholder in a text": question(question_text="Is <image> young?"),
    "placeholder in a text ": question(options=["<image>", "no"]),
    "text that is not UTF-8": question(question_text="\ud800"),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_unusable_questions_are_left_out_and_located(put, reason):
    src = put(content({"8": question(), "9": UNUSABLE[reason]}))
    (src / "secret.png").write_bytes(b"secret")
    (src / "benchmark/images/link.png").symlink_to(src / "secret.png")
    benchmark = facexbench.read(src)
    assert [q.number for q in benchmark.questions] == ["8"]
    assert [rejection.location for rejection in benchmark.rejected] == [f"{FILE} question 9"]
    assert benchmark.rejected_by_reason == {reason.strip(): 1}


def test_rejections_are_counted_by_kind(put):
    missing = {str(n): question(image_paths=[f"images/{n}.png"]) for n in range(2, 5)}
    src = put(content({"1": question(), **missing, "5": question(correct_answer_option=None)}))
    benchmark = facexbench.read(src)
    assert benchmark.rejected_by_reason == {"missing picture": 3, "no correct_answer_option": 1}


def test_pictures_may_be_absent_only_in_a_file_without_pictures(put):
    text_only = content({"1": question(image_paths=[])}, num_images="zero")
    (only,) = facexbench.read(put(text_only)).questions
    assert only.pictures == ()
    assert only.prompt.startswith("Is the face young?\n")


def test_optional_texts(put):
    bare = content({"1": question()}, prepend_text=None, postpend_text="", context="of no use")
    (only,) = facexbench.read(put(bare), setting="in_context").questions
    assert only.prompt == "<image>\nIs the face young?\n(A) yes\n(B) no\n(C) perhaps\n(D) unclear\n"


FILES = {
    "not JSON": "{",
    "the key '1' occurs twice": json.dumps(content({"1": question()})).replace(
        '"questions": {', '"questions": {"1": 0,'
    ),
    "not a JSON object": [1],
    "'category' is missing": content({"1": question()}, category=None),
    "'sub-category' is missing": content({"1": question()}, **{"sub-category": " "}),
    "'num_images' is missing": content({"1": question()}, num_images=4),
    "'prepend_text' is missing or no text": content({"1": question()}, prepend_text=["x"]),
    "'context' is missing": content({"1": question()}, category="tools_use"),
    "'questions' is missing": content(None),
    "'questions' is missing or empty": content({}),
    "question 'one'": content({"one": question()}),
    "not JSON (maximum recursion": "[" * 100_000,
}


@pytest.mark.parametrize("problem", FILES)
def test_files_of_another_form_are_refused_by_name(put, problem):
    src = put(FILES[problem])
    with pytest.raises(ValueError, match=r"celeba_single_mcq\.json: ") as error:
        facexbench.read(src)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sub_category_is_in_one_category(put):
    put(content({"1": question()}))
    src = put(content({"1": question()}, category="face_recognition"), "lfw.json")
    with pytest.raises(ValueError, match=r"lfw.json: sub-category 'attributes' is in category 'face_recognition', but"):
        facexbench.read(src)


def test_large_files_are_refused_before_they_are_read(put, monkeypatch):
    monkeypatch.setattr(facexbench, "MAX_BYTES", 99)
    with pytest.raises(ValueError, match="bytes, refused"):
        facexbench.read(put(content({"1": question()})))


def test_folders_without_questions(put, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        facexbench.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no folder benchmark/ in it"):
        facexbench.read(tmp_path)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/._celeba.json").write_text("resource fork")
    with pytest.raises(ValueError, match=r"no \.json files"):
        facexbench.read(tmp_path)
    src = put(content({"1": question(options=[])}))
    with pytest.raises(ValueError, match=r"not one usable question, 1 rejected; first: .* question 1: fewer than two"):
        facexbench.read(src)


def test_unknown_settings(put):
    src = put(content({"1": question()}))
    with pytest.raises(ValueError, match="setting 'cot'; expected one of zero_shot, in_context"):
        facexbench.read(src, setting="cot")
    with pytest.raises(ValueError, match="layout 'x'; expected one of plain, numbered"):
        facexbench.read(src, layout="x")
