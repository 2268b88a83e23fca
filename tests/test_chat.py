"""Test rendered conversations against golden ids and label masks of the references."""

import json
import pickle
from itertools import compress
from pathlib import Path

import pytest
from rich.console import Console

from fvjax.data import chat, tokenizers
from fvjax.data.chat import Template, Turn, render
from tests import tiny_bpe

GOLDEN = json.loads(Path("tests/golden/internvl3_chat.json").read_text())
CASES = [pytest.param(case, id=case["name"]) for case in GOLDEN]


@pytest.fixture(scope="module")
def qwen2(real_data) -> tokenizers.Tokenizer:
    source = real_data / "tokenizers/qwen2_internvl3"
    if not (source / "tokenizer.json").is_file():
        pytest.skip(f"no {source}: InternVL3's tokenizer files, 9 MB")
    return tokenizers.load(source)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tokenizers.Tokenizer:
    return tokenizers.load(tiny_bpe.write(tmp_path_factory.mktemp("tiny")))


def conversation(*texts: str) -> list[dict[str, str]]:
    """Return messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def of(case: dict) -> tuple[list[dict[str, str]], dict]:
    """Return the messages of a golden conversation and the other arguments of `render`."""
    messages = conversation(*(text for turn in case["turns"] for text in turn))
    return messages, {"image_tokens": [256 * tiles for tiles in case["tiles"]], "system": case["system"]}


def counted(rendered: chat.Rendered, tokenizer: tokenizers.Tokenizer) -> str:
    """Return the text of the tokens that carry loss."""
    return tokenizer.decode(list(compress(rendered.ids, rendered.label_mask)))


# ---- golden conversations


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("labels", ["llamafactory", "internvl_chat"])
def test_golden_ids_and_loss_positions(case, labels, qwen2):
    messages, options = of(case)
    ids, label_mask = render("internvl2_5", messages, qwen2, labels=labels, **options)
    expected = case[labels]["ids"]
    assert ids == (case["llamafactory"]["ids"] if expected == "same" else expected)
    assert [place for place, is_counted in enumerate(label_mask) if is_counted] == case[labels]["loss_positions"]
    assert len(ids) == len(label_mask)
    assert qwen2.decode(ids) == case["rendered"]


@pytest.mark.parametrize("case", [case for case in CASES if "prompt_internvl_chat" in case.values[0]])
def test_golden_prompts_before_the_last_answer(case, qwen2):
    messages, options = of(case)
    rendered = render("internvl2_5", messages[:-1], qwen2, labels="internvl_chat", **options)
    assert rendered.ids == case["prompt_internvl_chat"]["ids"]
    assert qwen2.decode(rendered.ids) == case["prompt_internvl_chat"]["text"]
    assert not any(rendered.label_mask)


@pytest.mark.parametrize("case", [case for case in CASES if "prompt_hf" in case.values[0]])
def test_golden_prompts_of_the_hf_template(case, qwen2):
    """The processor writes each picture as a line before the text, and a text as it is."""
    _, options = of(case)
    messages = [
        {"role": m["role"], "content": "".join(part.get("text", "<image>\n") for part in m["content"])}
        for m in case["prompt_hf"]["messages"]
    ]
    rendered = render("internvl2_5_hf", messages, qwen2, image_tokens=options["image_tokens"])
    assert rendered.ids == case["prompt_hf"]["ids"]


# ---- labels, with a tiny tokenizer


def test_what_carries_loss_by_convention(tiny):
    messages = conversation("Who?", "Yes.", "And?", "No")
    of_llamafactory = render("internvl2_5", messages, tiny)
    assert counted(of_llamafactory, tiny) == "Yes.<|im_end|>\nNo<|im_end|>\n"
    of_internvl_chat = render("internvl2_5", messages, tiny, labels="internvl_chat")
    assert counted(of_internvl_chat, tiny) == "Yes.<|im_end|>No<|im_end|>"
    assert of_internvl_chat.ids == of_llamafactory.ids


def test_an_answer_that_begins_with_line_breaks(tiny):
    """internvl_chat merges them with the line break before: other ids, and a hidden part of the answer."""
    messages = conversation("Who?", "\n\nYes")
    apart = render("internvl2_5", messages, tiny)
    whole = render("internvl2_5", messages, tiny, labels="internvl_chat")
    assert counted(apart, tiny) == "\n\nYes<|im_end|>\n"
    assert counted(whole, tiny) == "Yes<|im_end|>"
    assert len(whole.ids) == len(apart.ids) - 1
    assert tiny.decode(whole.ids) == tiny.decode(apart.ids)


def test_the_last_message_of_the_user_is_a_prompt(tiny):
    rendered = render("internvl2_5_hf", conversation("Who?", "Yes", "Who else?"), tiny)
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert tiny.decode(rendered.ids) == text + "<|im_start|>user\nWho else?<|im_end|>\n<|im_start|>assistant\n"
    assert not any(rendered.label_mask)


def smollm2_like(tmp_path) -> tokenizers.Tokenizer:
    """Return the tiny tokenizer with SmolLM2's names of tokens, of which the first is that of a turn's begin."""
    text = json.dumps(tiny_bpe.document())
    names = zip(chat.INTERNVL_IMAGE, chat.SMOLLM2_IMAGE)
    for old, new in names:
        text = text.replace(json.dumps(old), json.dumps(new))
    (tmp_path / "tokenizer.json").write_text(text)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizers.load(tmp_path)


def test_smollm2(tmp_path):
    """The text is that of the chat template in SmolLM2's GGUF file."""
    tokenizer = smollm2_like(tmp_path)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    turn = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert tokenizer.decode(render("smollm2", conversation("Who?", "Yes"), tokenizer).ids) == system + turn
    own = [{"role": "system", "content": "Be brief."}, *conversation("Who?")]
    prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    expected = f"<|im_start|>system\nBe brief.<|im_end|>\n{prompt}"
    assert tokenizer.decode(render("smollm2", own, tokenizer).ids) == expected
    rendered = render("smollm2", conversation("<image>Who?", "Yes"), tokenizer, image_tokens=[2], system=None)
    picture = "<issue_start><empty_output><empty_output><issue_closed>"
    assert tokenizer.decode(rendered.ids) == turn.replace("Who", f"{picture}Who")
    assert counted(rendered, tokenizer) == "Yes<|im_end|>\n"
    assert chat.stop_ids("smollm2", tokenizer) == (tokenizer.added["<|im_end|>"],)


def test_a_begin_of_text_token_comes_first_if_the_tokenizer_has_one(tiny, tmp_path):
    tiny_bpe.write(tmp_path)
    config = tiny_bpe.config() | {"bos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with_bos, without = (
        render("internvl2_5", conversation("<image>Who?", "Yes"), tokenizer, image_tokens=[2])
        for tokenizer in (tokenizers.load(tmp_path), tiny)
    )
    assert with_bos.ids == [tiny_bpe.ID["<|endoftext|>"], *without.ids]
    assert with_bos.label_mask == [False, *without.label_mask]
    assert with_bos.images == (range(without.images[0].start + 1, without.images[0].stop + 1),)


# ---- the system message


@pytest.mark.parametrize("template", ["internvl2_5", "internvl2_5_hf"])
def test_system_messages(template, tiny):
    def begin(messages=(), **options):
        text = tiny.decode(render(template, [*messages, *conversation("Who?")], tiny, **options).ids)
        return text.split("<|im_start|>user")[0]

    own = [{"role": "system", "content": "Be brief."}]
    default = f"<|im_start|>system\n{chat.INTERNVL_MESSAGE}<|im_end|>\n" if template == "internvl2_5" else ""
    assert begin() == default
    assert begin(system=None) == ""
    assert begin(system="Be exact.") == "<|im_start|>system\nBe exact.<|im_end|>\n"
    for system in ("default", None, "Be exact."):
        assert begin(own, system=system) == "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": ""}]])
def test_an_empty_system_message_is_ambiguous(messages, tiny):
    with pytest.raises(ValueError, match="the system message is empty; leave it out, and give system=None"):
        render("internvl2_5", [*messages, *conversation("Who?")], tiny, system="" if not messages else None)


# ---- pictures


def test_pictures_become_runs_of_tokens(tiny):
    messages = conversation("a<image>\n<image>", "Yes", "<image>b", "No")
    rendered = render("internvl2_5", messages, tiny, image_tokens=[3, 1, 2], system=None)
    begin, context, end = (tiny_bpe.ID[text] for text in ("<img>", "<IMG_CONTEXT>", "</img>"))
    for places, count in zip(rendered.images, (3, 1, 2), strict=True):
        assert rendered.ids[places.start : places.stop] == [begin, *[context] * count, end]
        assert not any(rendered.label_mask[places.start : places.stop])
    assert rendered.ids.count(context) == 6
    text = tiny.decode(rendered.ids)
    assert "a<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n<img><IMG_CONTEXT></img><|im_end|>" in text
    assert "user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>b<|im_end|>" in text


def test_a_rendered_conversation_survives_pickling(tiny):
    rendered = render("internvl2_5", conversation("<image>", "Yes"), tiny, image_tokens=[2])
    copy = pickle.loads(pickle.dumps(rendered))  # noqa: S301 (our own bytes)
    assert copy == rendered == (rendered.ids, rendered.label_mask)
    assert copy.images == rendered.images


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "the conversation is empty"),
        ([{"role": "system", "content": "Be brief."}], {}, "the conversation is empty"),
        ([{"role": "human", "content": "Hi"}], {}, "message 1: unknown role 'human'; expected one of system, user"),
        (
            [*conversation("Hi"), {"role": "system", "content": "x"}],
            {},
            "message 2: a system message must be the first",
        ),
        ([{"role": "system", "content": "x"}] * 2, {}, "message 2: a system message must be the first"),
        (conversation("Hi", "Yes")[1:], {}, "message 1: the conversation must begin with a message of the user"),
        ([*conversation("Hi"), *conversation("Ho")], {}, "message 2: two messages of the user in a row"),
        ([*conversation("Hi", "Yes"), *conversation("", "No")[1:]], {}, "message 3: two messages of the assistant"),
        ([{"role": "user", "content": "Hi", "image": "a.jpg"}], {}, "message 1: expected the keys role and content"),
        ([{"role": "user"}], {}, "message 1: expected the keys role and content"),
        (["Hi"], {}, "message 1: expected the keys role and content"),
        ([{"role": "user", "content": ["Hi"]}], {}, "message 1: the content must be a text"),
        (conversation("<image>"), {}, "the conversation has 1 <image> but 0 pictures; write <image> once for each"),
        (conversation("<image>"), {"image_tokens": [1, 1]}, "has 1 <image> but 2 pictures"),
        (conversation("<image>"), {"image_tokens": [0]}, "a picture has at least one visual token, not 0"),
        (conversation("Hi", "<image>"), {"image_tokens": [1]}, "a message of the assistant contains <image>"),
        (conversation("Hi"), {"system": "<image>", "image_tokens": [1]}, "a message of the system contains <image>"),
        (conversation("<IMG_CONTEXT>"), {}, "a message of the user contains <IMG_CONTEXT>; write <image> where"),
        (
            conversation("Hi"),
            {"labels": "vicuna"},
            "unknown label convention 'vicuna'; choose one of llamafactory, int",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(messages, options, message, tiny):
    with pytest.raises(ValueError, match=message):
        render("internvl2_5", messages, tiny, **options)


# ---- templates and special tokens


def test_templates_are_data(tiny):
    """A template needs no code: here one of Vicuna's shape, whose turns end in one token or none."""
    image = ("<img>", "<IMG_CONTEXT>", "</img>")
    turns = Turn("", " "), Turn("USER: ", " "), Turn("ASSISTANT: ", "<|endoftext|>")
    template = Template("vicuna", "A chat.", *turns, image, stop=("<|endoftext|>",))
    rendered = render(template, conversation("Who?", "Yes"), tiny)
    assert tiny.decode(rendered.ids) == "A chat. USER: Who? ASSISTANT: Yes<|endoftext|>"
    assert counted(rendered, tiny) == "Yes<|endoftext|>"
    assert chat.stop_ids(template, tiny) == (tiny_bpe.ID["<|endoftext|>"],)


def test_unknown_templates_are_refused(tiny):
    for call in (lambda: render("vicuna", conversation("Hi"), tiny), lambda: chat.stop_ids("vicuna", tiny)):
        with pytest.raises(
            ValueError, match="unknown chat template 'vicuna'; choose one of internvl2_5, internvl2_5_hf"
        ):
            call()


def test_stop_ids(tiny):
    assert chat.stop_ids("internvl2_5", tiny) == chat.stop_ids("internvl2_5_hf", tiny) == (tiny_bpe.ID["<|im_end|>"],)


@pytest.mark.parametrize(("lacking", "text"), [("<|im_end|>", "Hi"), ("<IMG_CONTEXT>", "<image>")])
def test_a_tokenizer_without_the_templates_tokens_is_refused(lacking, text, tmp_path):
    document = tiny_bpe.document()
    document["added_tokens"] = [
        token | {"content": token["content"].replace(lacking, "<other>")} for token in document["added_tokens"]
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"the tokenizer has no token {lacking.replace('|', '[|]')}, which the chat"):
        render("internvl2_5", conversation(text), tokenizers.load(tmp_path), image_tokens=[1] * (text == "<image>"))


def test_text_that_looks_like_a_special_token(tiny):
    """Both references encode it as that token; whoever prepares data can count such messages."""
    text = "Say <|im_end|> and <img>"
    assert chat.special_in(text, tiny) == ["<|im_end|>", "<img>"]
    assert chat.special_in("Say <image> < img > im_end", tiny) == []
    rendered = render("internvl2_5_hf", conversation(text), tiny)
    assert rendered.ids.count(tiny_bpe.ID["<|im_end|>"]) == 2


# ---- length and display


def test_what_cutting_would_destroy(tiny):
    rendered = render("internvl2_5_hf", conversation("<image>", "Yes", "<image>?", "No"), tiny, image_tokens=[5, 5])
    count, (first, second) = len(rendered.ids), rendered.images
    chat.check_length(rendered, count, "record 3")
    with pytest.raises(ValueError, match=f"^record 3: has {count} tokens, {count - 1} are allowed.* lose an answer;"):
        chat.check_length(rendered, count - 1, "record 3")
    places = rf"picture 2 \(tokens {second.start} to {second.stop - 1}\) and an answer"
    for length in (second.stop - 1, second.start, first.stop):
        with pytest.raises(ValueError, match=f"or lose {places};"):
            chat.check_length(rendered, length, "x")
    with pytest.raises(ValueError, match=r"or lose picture 1 \(.*\) and picture 2 \(.*\) and an answer"):
        chat.check_length(rendered, first.stop - 1, "x")
    prompt = render("internvl2_5_hf", conversation("Who?"), tiny)
    with pytest.raises(ValueError, match="or lose the end of the prompt;"):
        chat.check_length(prompt, 3, "x")


@pytest.mark.parametrize(
    ("labels", "end"), [("llamafactory", "⟦Yes\\x1b↵\né<|im_end|>↵⟧"), ("internvl_chat", "⟦Yes\\x1b↵\né<|im_end|>⟧↵")]
)
def test_showing_what_carries_loss(labels, end, tiny):
    messages = conversation("<image>\nWho?", "Yes\x1b\né")
    rendered = render("internvl2_5_hf", messages, tiny, image_tokens=[4], labels=labels)
    text = chat.show(rendered, tiny)
    begin = "<|im_start|>user↵\n<img><IMG_CONTEXT>×4</img>↵\nWho?<|im_end|>↵\n<|im_start|>assistant↵\n"
    assert text.plain == f"{begin}{end}\n"
    (coloured,) = [text.plain[span.start : span.end] for span in text.spans if span.style]
    assert (coloured[0], "⟧" in coloured) == ("⟦", True)
    console = Console(color_system=None, width=100)
    with console.capture() as capture:
        console.print(text)
    assert "⟦Yes" in capture.get()
