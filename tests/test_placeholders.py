"""Test Vicuna's template with a placeholder for each picture, against the ids of Face-LLaVA's published code."""

import json
import shutil
from pathlib import Path

import pytest

from fvjax.data import placeholders, tokenizers
from fvjax.data.chat import PLACEHOLDER_ID, TEMPLATES, render, stop_ids

GOLDEN = json.loads(Path("tests/golden/facellava/facellava_tokens.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
ROLES = {"human": "user", "gpt": "assistant"}
# What the published code loses without a word; ours says so unless it is told to do the same.
LOSES = {"seventeen_images": "17 <image> in a message", "empty_answer": "the rounds of the conversation have 1 tokens"}
LOSES |= dict.fromkeys(("separator_in_answer", "eos_in_answer", "eos_in_question"), "the rounds of the conversation")


@pytest.fixture(scope="module")
def llama(real_data, tmp_path_factory):
    """Return LLaMA's tokenizer in its two modes."""
    file = real_data / "tokenizers/llama.model"
    if not file.is_file():
        pytest.skip("LLaMA's tokenizer not here")
    loaded = {}
    for mode, legacy in (("legacy", True), ("non_legacy", False)):
        folder = tmp_path_factory.mktemp(mode)
        shutil.copy(file, folder / "tokenizer.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        loaded[mode] = tokenizers.load(folder)
    return loaded


def messages(case) -> list[dict[str, str]]:
    """Return a case's messages. The published code drops an answer that comes first."""
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in case["conversations"]]
    return turns[1:] if turns[0]["role"] == "assistant" else turns


def expected(case, mode) -> dict:
    return case["legacy"] if case[mode] == "same" else case[mode]


@pytest.mark.parametrize("mode", ["legacy", "non_legacy"])
@pytest.mark.parametrize("name", CASES)
def test_training_ids_and_labels_are_the_reference_s(llama, name, mode):
    want = expected(CASES[name], mode)
    got = render("vicuna_v1", messages(CASES[name]), llama[mode], reference=True)
    assert got.ids == want["input_ids"]
    labels = [id if counted else GOLDEN["ignore"] for id, counted in zip(*got)]
    assert labels == want["labels"]
    assert [place.start for place in got.images] == [i for i, id in enumerate(got.ids) if id == PLACEHOLDER_ID]
    assert want["mismatch"] == (not any(got.label_mask))


@pytest.mark.parametrize("name", CASES)
def test_inference_ids_are_the_reference_s(llama, name):
    case = CASES[name]["inference"]
    question = [messages(CASES[name])[0]]
    if name == "seventeen_images":
        with pytest.raises(ValueError, match="16 are allowed"):
            render("llava_v1", question, llama["legacy"])
        return
    got = render("llava_v1", question, llama["legacy"])
    assert got.ids == case["input_ids"]
    assert not any(got.label_mask)


@pytest.mark.parametrize("mode", ["legacy", "non_legacy"])
def test_texts_without_pictures_have_the_reference_s_ids(llama, mode):
    for text, want in GOLDEN["plain_tokenizer_calls"].items():
        assert placeholders.encode(text, llama[mode]) == expected({**want, "name": text}, mode), text


@pytest.mark.parametrize("name", LOSES)
def test_nothing_is_lost_without_an_error(llama, name):
    with pytest.raises(ValueError, match=LOSES[name]):
        render("vicuna_v1", messages(CASES[name]), llama["legacy"])


@pytest.mark.parametrize(
    ("content", "options", "error"),
    [
        ("<video><video>\nBoth?", {}, "more than one <video>"),
        ("<image>", {"image_tokens": [256]}, "leave image_tokens and labels out"),
        ("<image>", {"labels": "internvl_chat"}, "leave image_tokens and labels out"),
    ],
)
def test_what_a_template_with_placeholders_refuses(llama, content, options, error):
    with pytest.raises(ValueError, match=error):
        render("vicuna_v1", [{"role": "user", "content": content}], llama["legacy"], **options)


def test_pictures_stand_in_questions(llama):
    chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here: <video>"}]
    with pytest.raises(ValueError, match="a message of the assistant contains"):
        render("vicuna_v1", chat, llama["legacy"])


def test_the_number_of_frames_is_free(llama):
    ids = render("vicuna_v1", [{"role": "user", "content": "<video>\nWhat?"}], llama["legacy"], frames=3).ids
    assert ids.count(PLACEHOLDER_ID) == 3


def test_answers_end_with_the_end_token(llama):
    for name in ("vicuna_v1", "llava_v1"):
        assert stop_ids(name, llama["legacy"]) == (GOLDEN["eos"],)
    assert TEMPLATES["llava_v1"].between_frames == " "
