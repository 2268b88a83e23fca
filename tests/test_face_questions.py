"""Test the questions about procedural faces and the tokenizer trained on them."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fvjax.data import cartoon, chat, face_questions, face_tokenizer, images, synthetic, tokenizers
from fvjax.data.face_questions import KINDS, Unasked
from fvjax.data.questions import Question, conversation

SHAPE = synthetic.identity_shape(0, 0) | {"hair_volume": 0.2}
SHOT = synthetic.shot_attributes(0, 0, 0, 0) | {"light": 0.5, "glasses": False, "scarf": False, "bar": False}
CLOSE, HIDDEN = Unasked.CLOSE, Unasked.HIDDEN


def verdict(kind, **attributes):
    shape = {name: attributes.get(name, value) for name, value in SHAPE.items()}
    return KINDS[kind].verdict(shape, SHOT | attributes)


@pytest.mark.parametrize(
    ("kind", "attribute", "expected"),
    [
        (
            "head_direction",
            "yaw",
            [(-0.5, "left"), (-0.14, "left"), (-0.13, CLOSE), (-0.09, CLOSE), (-0.08, "straight"), (0, "straight")],
        ),
        (
            "head_direction",
            "yaw",
            [(0.08, "straight"), (0.081, CLOSE), (0.139, CLOSE), (0.14, "right"), (0.5, "right")],
        ),
        ("head_tilt", "roll", [(-0.06, "left"), (-0.05, CLOSE), (-0.03, "upright"), (0.03, "upright")]),
        ("head_tilt", "roll", [(0.031, CLOSE), (0.059, CLOSE), (0.06, "right")]),
        ("head_nod", "pitch", [(-0.06, "up"), (-0.04, CLOSE), (0, "level"), (0.04, CLOSE), (0.06, "down")]),
        ("light_side", "light_x", [(-0.45, "left"), (-0.44, CLOSE), (-0.2, "front"), (0.2, "front"), (0.45, "right")]),
        ("light_side", "light", [(0.199, Unasked.FLAT), (0.2, "front")]),
        ("light_strength", "light", [(0.2, "soft"), (0.21, CLOSE), (0.29, CLOSE), (0.3, "hard"), (1, "hard")]),
        ("expression", "smile", [(-0.4, "frown"), (-0.39, CLOSE), (0.39, CLOSE), (0.4, "smile")]),
        ("mouth", "mouth_open", [(0, "closed"), (0.05, "closed"), (0.06, CLOSE), (0.39, CLOSE), (0.4, "open")]),
        ("mouth", "scarf", [(True, HIDDEN), (False, "closed")]),
        ("expression", "bar", [(True, HIDDEN)]),
        ("glasses", "glasses", [(True, "yes"), (False, "no")]),
        ("cover", "scarf", [(True, "scarf"), (False, "nothing")]),
        ("cover", "bar", [(True, "bar")]),
        ("hair_length", "hair_length", [(0.1, "short"), (0.11, CLOSE), (0.44, CLOSE), (0.45, "long")]),
        ("hair_length", "hair_volume", [(0.079, Unasked.UNSEEN)]),
        ("hair_colour", "hair", [((0.28,) * 3, "dark"), ((0.3,) * 3, CLOSE), ((0.39,) * 3, "light")]),
        ("hair_colour", "hair", [((0, 0.5, 0), CLOSE), ((0, 0, 1), "dark"), ((0, 1, 0), "light")]),
        ("skin", "skin", [((0.45,) * 3, "dark"), ((0.47,) * 3, CLOSE), ((0.59,) * 3, CLOSE), ((0.61,) * 3, "light")]),
    ],
)
def test_thresholds_and_the_gaps_between_them(kind, attribute, expected):
    base = {"light_x": 0.0, "mouth_open": 0.0, "smile": 1.0}
    for value, answer in expected:
        assert verdict(kind, **(base | {attribute: value})) == answer, (attribute, value)


def test_two_covers_are_one_too_many():
    assert verdict("cover", scarf=True, bar=True) is Unasked.BOTH


def centre(mask):
    return np.argwhere(mask).mean(0)


def test_left_right_up_and_down_are_those_of_the_picture():
    plain = SHOT | {"blur": 0.0, "noise": 0.0, "hair": np.array([0, 1.0, 0]), "skin": np.array([1.0, 0, 0])}
    plain |= {"backdrop": np.zeros((2, 3)), "light": 0.0, "clothes": np.zeros(3), "iris_colour": np.array([0, 0, 1.0])}

    def draw(**shot):
        picture = cartoon.render(SHAPE, plain | shot).astype(int)
        iris = picture[..., 2] - picture[..., :2].max(-1) > 60
        hair = picture[..., 1] - picture[..., [0, 2]].max(-1) > 60
        return centre(iris), centre(hair)

    (eye_y, eye_x), (_, hair_x) = draw()
    assert draw(yaw=0.3)[0][1] > eye_x + 3  # right: the eyes move to the right
    assert draw(pitch=0.15)[0][0] > eye_y + 2  # down: the eyes move down
    assert draw(roll=0.2)[1][1] > hair_x + 2  # right: the top of the head moves to the right
    light = {"light": 1.0, "light_y": 0.0}
    bright = [cartoon.render(SHAPE, plain | light | {"light_x": x})[40:70].mean(-1) for x in (-0.9, 0.9)]
    assert bright[0][:, :56].mean() > bright[0][:, 56:].mean() + 5
    assert bright[1][:, :56].mean() < bright[1][:, 56:].mean() - 5


def test_every_wording_names_all_options_and_no_two_are_equal():
    wordings = [wording for kind in KINDS.values() for wording in kind.wordings]
    assert len(set(wordings)) == len(wordings)
    for kind in KINDS.values():
        assert len(kind.wordings) >= 3
        for wording in kind.wordings:
            assert set(kind.options) <= set(re.findall(r"[a-z]+", wording.lower())), wording


def asked(difficulty, identities=range(1000), seed=5):
    counts = defaultdict(Counter)
    for identity in identities:
        for question in face_questions.questions(identity, 1, seed, difficulty)[0]:
            counts[question.kind][question.answer] += 1
    return counts


@pytest.mark.parametrize("difficulty", [1.0, 2.0])
def test_no_answer_is_right_most_of_the_time(difficulty):
    counts = asked(difficulty)
    for name, kind in KINDS.items():
        assert set(counts[name]) == set(kind.options), name
        total = counts[name].total()
        assert total > 150, name
        assert max(counts[name].values()) / total < 0.62, (name, counts[name])


def test_rates_thin_out_the_most_frequent_answer_only():
    rates = face_questions.asking_rates(1.0)
    assert rates["glasses"]["yes"] == 1
    assert rates["glasses"]["no"] == pytest.approx(0.15 / 0.85, abs=0.03)
    assert rates["head_direction"] == {"left": 1, "straight": 1, "right": 1}
    assert set(face_questions.asking_rates(0.0)["head_tilt"].values()) == {0}


def test_a_kind_with_one_answer_is_not_asked():
    questions, unasked = face_questions.questions(3, 0, 0, 0.0)
    single = {kind for kind, reason in unasked.items() if reason is Unasked.SINGLE}
    assert single >= {"head_direction", "head_tilt", "head_nod", "glasses", "cover"}
    assert {q.kind for q in questions} | set(unasked) == set(KINDS)


def test_questions_are_a_function_of_seed_identity_and_image():
    first = face_questions.questions(3, 1, 7)
    assert first == face_questions.questions(3, 1, 7)
    others = [(4, 1, 7), (3, 2, 7), (3, 1, 8)]
    assert all(face_questions.questions(*other)[0] != first[0] for other in others)
    for identity in range(20):  # other kinds keep their wording, answer and order when one is left out
        everything = face_questions.questions(identity, 0, 0)[0]
        without = face_questions.questions(identity, 0, 0, kinds=[name for name in KINDS if name != "skin"])[0]
        assert without == [q for q in everything if q.kind != "skin"]


def test_shots_of_one_person_get_other_wordings():
    long_haired = (i for i in range(99) if KINDS["hair_length"].verdict(synthetic.identity_shape(i, 0), {}) == "long")
    person = next(long_haired)
    asked = [face_questions.questions(person, number, 0, kinds=["hair_length"])[0] for number in range(40)]
    texts = {questions[0].text for questions in asked if questions}  # some are left out, as long hair is frequent
    assert texts == set(KINDS["hair_length"].wordings)


def test_order_and_wordings_vary():
    firsts, texts = Counter(), defaultdict(set)
    for identity in range(300):
        questions, _ = face_questions.questions(identity, 0, 0)
        firsts[questions[0].kind] += 1
        for question in questions:
            texts[question.kind].add(question.text)
    assert set(firsts) == set(KINDS)
    assert {name: len(kind.wordings) for name, kind in KINDS.items()} == {name: len(texts[name]) for name in KINDS}


def test_mistakes():
    with pytest.raises(ValueError, match="'beard' is no kind of question; choose from head_direction, "):
        face_questions.questions(0, 0, 0, kinds=["beard"])
    with pytest.raises(ValueError, match="the answer 'maybe' is none of the options"):
        Question("glasses", "?", ("yes", "no"), "maybe")


def test_a_conversation_shows_the_picture_once():
    turns = [Question("a", "A?", ("x", "y"), "x"), Question("b", "B?", ("x", "y"), "y")]
    assert conversation(turns) == [
        {"role": "user", "content": "<image>\nA?"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "y"},
    ]
    assert turns[0].meta() == {"options": ["x", "y"], "answer": "x", "tag": "a"}


# ---- Stores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return face_questions.write(tmp_path_factory.mktemp("s") / "train", range(30), 2, 3, split="train", difficulty=2.0)


def test_conversations_for_training(store):
    lengths = Counter()
    for i in range(len(store)):
        record = store.conversation(i)
        assert record.source == f"synthetic/3/{i // 2:06d}/{i % 2:03d}"
        expected, _ = face_questions.questions(i // 2, i % 2, 3, 2.0)
        turns = len(record.messages) // 2
        assert record.messages == conversation(expected[:turns])
        assert record.meta == {"kinds": [question.kind for question in expected[:turns]]}
        lengths[turns] += 1
        drawn = synthetic.face(i // 2, i % 2, 3, 2.0).astype(int)
        assert np.abs(images.decode(record.pictures[0], "x").astype(int) - drawn).mean() < 8
    assert set(lengths) == {1, 2, 3, 4}


def test_every_kind_is_asked_about_or_counted(store):
    counts = store.manifest["questions"]
    answers = Counter()
    for i in range(len(store)):
        record = store.conversation(i)
        replies = [message["content"] for message in record.messages if message["role"] == "assistant"]
        answers.update(zip(record.meta["kinds"], replies))
    assert answers == Counter({(k, a): n for k, its in counts["answers"].items() for a, n in its.items() if n})
    for name in KINDS:
        assert sum(counts["answers"][name].values()) + sum(counts["unasked"][name].values()) == 60
    assert set(counts["unasked"]["skin"]) >= {Unasked.ENOUGH, Unasked.CLOSE}


def test_one_question_a_record_for_evaluation(tmp_path, store):
    arguments = {"split": "test", "difficulty": 2.0, "single": True, "questions_per_image": 3}
    made = face_questions.write(tmp_path / "a", range(5), 1, 3, **arguments)
    expected = [(i, q) for i in range(5) for q in face_questions.questions(i, 0, 3, 2.0)[0][:3]]
    assert len(made) == len(expected) == 15
    for record, (i, question) in zip(map(made.conversation, range(15)), expected):
        assert record.messages == conversation([question])
        assert record.source == f"synthetic/3/{i:06d}/000#{question.kind}"
        assert record.meta == {"options": list(question.options), "answer": question.answer, "tag": question.kind}
    assert face_questions.write(tmp_path / "b", range(5), 1, 3, **arguments).data_hash == made.data_hash
    assert face_questions.write(tmp_path / "c", range(5), 1, 4, **arguments).data_hash != made.data_hash


def test_pictures_without_a_question_are_counted(tmp_path):
    made = face_questions.write(tmp_path / "a", range(40), 1, 0, split="train", kinds=["glasses"])
    assert len(made) + len(made.manifest["rejected"]) == 40
    assert made.manifest["rejected_by_reason"] == {"no question": 40 - len(made)}
    unasked = made.manifest["questions"]["unasked"]
    assert unasked == {"glasses": {"the answer is frequent enough": 40 - len(made)}}
    with pytest.raises(ValueError, match="questions_per_image is 0"):
        face_questions.write(tmp_path / "b", range(4), 1, 0, split="train", questions_per_image=0)
    with pytest.raises(ValueError, match=r"not one usable conversation; first rejected: .*no question"):
        face_questions.write(tmp_path / "c", range(4), 1, 0, split="train", difficulty=0, kinds=["glasses"])


# ---- The tokenizer ---------------------------------------------------------------------------------------------------

SHIPPED = Path("fvjax/pretrained/tiny_chat")


def test_the_shipped_tokenizer_is_what_the_function_writes(tmp_path):
    face_tokenizer.write(tmp_path / "made")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "made" / file).read_bytes() == (SHIPPED / file).read_bytes()
    with pytest.raises(ValueError, match="exists; choose another directory"):
        face_tokenizer.write(tmp_path / "made")


def test_answers_are_one_token_and_any_text_survives():
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 512
    assert [tokenizer.token_to_id(token) for token in face_tokenizer.SPECIAL] == list(range(506, 512))
    for kind in KINDS.values():
        assert all(len(tokenizer.encode(option).ids) == 1 for option in kind.options)
        assert max(len(tokenizer.encode(wording).ids) for wording in kind.wordings) <= 16
    for text in ("Grüße 你好 👋\n\t x", bytes(range(1, 128)).decode(), "<|im_start|>user\n<img><IMG_CONTEXT></img>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("<|im_start|>user\nIs").ids) == 4
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 60_000


def test_the_shipped_tokenizer_opens_as_that_of_a_checkpoint():
    tokenizer = tokenizers.load(SHIPPED)
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id) == (512, None, 508)
    messages = conversation(face_questions.questions(0, 0, 0)[0][:2])
    rendered = chat.render("internvl2_5", messages, tokenizer, image_tokens=(16,), system=None)
    assert len(rendered.ids) < 80
    assert chat.stop_ids("internvl2_5", tokenizer) == (508,)
    labels = [i for i, counts in zip(rendered.ids, rendered.label_mask) if counts]
    assert tokenizer.decode(labels) == "".join(f"{m['content']}<|im_end|>\n" for m in messages[1::2])
