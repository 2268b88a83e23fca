"""Test conversations with a LLaVA: what it is given for messages, pictures, a clip and landmarks."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fvjax import api, chat, media_model
from fvjax.data import frames, tokenizers
from fvjax.models import encoder
from tests.reference import facellava
from weights_convert import open_checkpoint

TOKENIZER = Path("fvjax/pretrained/tiny_chat")
ASKED = [{"role": "user", "content": "<image>\nSmile?"}]
OF_CLIP = [{"role": "user", "content": "<video>\nSmile?"}]
POINTS = np.linspace(0, 1, 136, dtype=np.float32).reshape(68, 2)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    ckpt = open_checkpoint(facellava.write("facellava_tiny/paper", tmp_path_factory.mktemp("tiny"), vocab=512))
    return encoder.build("llava", ckpt.model_config, "").net


@pytest.fixture
def model(net):
    """Return a model that answers "Yes." and notes what it was given. Nothing is computed."""
    tokenizer = tokenizers.load(TOKENIZER)
    answer = [*tokenizer.encode("Yes."), tokenizer.added["<|im_end|>"]]
    given = SimpleNamespace()

    def answering(variables, tokens, media, places, lengths, **settings):
        given.tokens, given.media, given.length, given.settings = tokens, media, int(lengths[0]), settings
        return np.array([answer]), np.array([len(answer)])

    fake = SimpleNamespace(net=net, continue_conversation=answering)
    model = media_model.MediaModel(fake, {}, tokenizer, "highest", template="vicuna_tiny")  # type: ignore[arg-type]
    model.given = given  # type: ignore[attr-defined]
    return model


def face(height: int, width: int, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_a_picture_is_resized_and_its_landmarks_go_with_it(model):
    assert model.generate(ASKED, [face(112, 224)], 5, landmarks=[POINTS]) == "Yes."
    media = model.given.media
    assert media["images"].shape == (1, 1, 56, 56, 3)
    assert set(media) == {"images", "image_places", "image_landmarks", "image_has_landmarks"}
    assert media["image_has_landmarks"].all()
    np.testing.assert_allclose(media["image_landmarks"][0, 0], (POINTS - 0.5) * [2, 1] + 0.5, atol=1e-6)
    assert model.given.settings["max_tokens"] == 5
    assert np.isin(media["image_places"], np.arange(model.given.length)).all()


def test_a_clip_of_another_length_has_eight_frames(model):
    clip = np.stack([face(56, 56, 10 * i) for i in range(20)])
    points = np.stack([POINTS + i for i in range(20)])
    model.generate(OF_CLIP, video=clip, video_landmarks=points)
    chosen = frames.indices(20, 8)
    assert model.given.media["videos"][0, 0, :, 0, 0, 0].tolist() == [10 * i for i in chosen]
    np.testing.assert_array_equal(model.given.media["video_landmarks"][0, 0], points[chosen])
    assert "images" not in model.given.media


def test_sampling_has_a_key_and_greedy_has_none(model):
    model.generate(ASKED, [face(56, 56)])
    assert set(model.given.settings) == {"max_tokens", "eos"}
    assert not model.given.media["image_has_landmarks"].any()
    model.generate(ASKED, [face(56, 56)], temperature=0.5, top_p=0.9, seed=3)
    assert (model.given.settings["temperature"], model.given.settings["top_p"]) == (0.5, 0.9)


@pytest.mark.parametrize(
    ("messages", "settings", "message"),
    [
        (ASKED, {}, "they name 1 pictures and 0 clips, given are 0 pictures and 0 clips"),
        (ASKED, {"video": face(56, 56)[None]}, "they name 1 pictures and 0 clips, given are 0 pictures and 1 clips"),
        (OF_CLIP, {"video": np.zeros((0, 56, 56, 3), np.uint8)}, "video: a clip of no frames"),
        (OF_CLIP * 2, {"video": face(56, 56)[None]}, "they name 0 pictures and 2 clips"),
        (OF_CLIP, {"video": face(56, 56)[None], "video_landmarks": POINTS}, r"expected float \[1, 68, 2\]"),
        (ASKED, {"images": [face(56, 56)], "landmarks": [POINTS[:5]]}, r"expected float \[68, 2\]"),
        (ASKED, {"images": [face(56, 56)], "landmarks": [POINTS, POINTS]}, "landmarks of 2 pictures, given are 1"),
        (ASKED, {"images": [face(56, 56).astype(float)]}, "image 0: expected uint8"),
        ([], {}, "the last one must be the user's"),
        (ASKED, {"images": [face(56, 56)], "max_tokens": 0}, "out of range"),
    ],
)
def test_media_that_do_not_fit_the_messages(model, messages, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(messages, **settings)


@pytest.fixture
def directory(tmp_path, model, monkeypatch):
    """Return a directory that is opened as the model."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(api, "load", lambda *given, **settings: model)
    return tmp_path


def test_the_command_shows_a_clip(directory, model, monkeypatch, capsys):
    clip = [face(56, 56, 10 * i) for i in range(8)]
    monkeypatch.setattr(frames, "extract", lambda file: (clip, 80))
    assert chat.main([f"--model={directory}", "--template=vicuna_tiny", "--video=clip.mp4", "Smile?"]) == 0
    assert capsys.readouterr().out == "Yes.\n"
    assert model.given.media["videos"][0, 0, :, 0, 0, 0].tolist() == [10 * i for i in range(8)]
    assert chat.main([f"--model={directory}", "--template=vicuna_tiny", "--video=clip.mp4", "--json", "Smile?"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["answer"], record["video"]) == ("Yes.", "clip.mp4")


@pytest.mark.parametrize("flags", [["--folder=x", "--out=y", "Who?"], ["--system=Hello", "Who?"], []])
def test_flags_that_a_llava_does_not_have(directory, capsys, flags):
    assert chat.main([f"--model={directory}", *flags]) == 2
    assert "is a LLaVA: it takes a question, and no --" in capsys.readouterr().err
