"""Conversations as token ids: chat templates, the places of pictures, and which tokens carry loss.

    tokenizer = tokenizers.load("data/InternVL3-1B")                        from fvjax.data import tokenizers
    messages = [{"role": "user", "content": "<image>\\nWho is this?"}, {"role": "assistant", "content": "A man."}]
    ids, label_mask = render("internvl2_5", messages, tokenizer, image_tokens=[256])

The models of LLaVA's family have one placeholder id for each picture instead, which the model replaces itself:

    ids, label_mask = render("vicuna_v1", messages, tokenizer)      training; "llava_v1" for inference

Sources: `internvl2_5` in OpenGVLab/InternVL's conversation.py, `intern_vl` in LLaMA-Factory's template.py, the chat
template of the `-hf` checkpoints, and SmolLM2's own in its tokenizer_config.json.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from rich.text import Text

from fvjax.data import placeholders
from fvjax.data.placeholders import IMAGE, PLACEHOLDER_ID, VIDEO
from fvjax.data.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """What stands before and after the message of a role."""

    begin: str
    end: str


@dataclass(frozen=True)
class Template:
    """How messages become one text.

    Attributes:
        name: for errors.
        system_message: of conversations that bring none; None: such a conversation has no system turn.
        system, user, assistant: the text around each role's messages. An answer is generated after ``assistant.begin``.
        image: the added tokens before a picture's visual tokens, in place of each of them, and after them.
        stop: the added tokens that end an answer.
        begin_of_text: whether the tokenizer's begin-of-text token, if it has one, comes before the first turn.
        placeholders: whether one id stands in the place of a picture's visual tokens (fvjax.data.placeholders).
        between_frames: what stands between the placeholders of a clip's frames.
    """

    name: str
    system_message: str | None
    system: Turn
    user: Turn
    assistant: Turn
    image: tuple[str, str, str]
    stop: tuple[str, ...]
    begin_of_text: bool = True
    placeholders: bool = False
    between_frames: str = ""


INTERNVL_IMAGE = ("<img>", "<IMG_CONTEXT>", "</img>")
# SmolLM2 knows no pictures. These are three of its added tokens that conversations do not use.
SMOLLM2_IMAGE = ("<issue_start>", "<empty_output>", "<issue_closed>")


def _chat_markup(
    name: str, system_message: str | None, image: tuple[str, str, str] = INTERNVL_IMAGE, *, begin_of_text: bool = True
) -> Template:
    """Return a template in which <|im_start|> and <|im_end|> surround every turn."""
    system, user, assistant = (Turn(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES)
    stop = ("<|im_end|>",)
    return Template(name, system_message, system, user, assistant, image, stop, begin_of_text)


def _vicuna(name: str, person: str, between_frames: str, end: str = "</s>") -> Template:
    """Return the template of Vicuna v1; `person`: what its system message calls the user."""
    message = (
        f"A chat between a curious {person} and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the {person}'s questions."
    )
    turns = Turn("", " "), Turn("USER: ", " "), Turn("ASSISTANT: ", end)
    tokens = ("", IMAGE, ""), (end,)
    return Template(name, message, *turns, *tokens, placeholders=True, between_frames=between_frames)


INTERNVL_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SMOLLM2_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATES = {
    template.name: template
    for template in (
        _chat_markup("internvl2_5", INTERNVL_MESSAGE),
        _chat_markup("internvl2_5_hf", None),
        # SmolLM2 names <|im_start|>, which begins every turn, as its begin-of-text token.
        _chat_markup("smollm2", SMOLLM2_MESSAGE, SMOLLM2_IMAGE, begin_of_text=False),
        # The published models of LLaVA's family were trained with the first of these and are asked with the second.
        _vicuna("vicuna_v1", "user", between_frames=""),
        _vicuna("llava_v1", "human", between_frames=" "),
        _vicuna(
            "vicuna_tiny", "user", between_frames="", end="<|im_end|>"
        ),  # for the small tokenizer that comes with us
    )
}


class _Labelled(NamedTuple):
    ids: list[int]
    label_mask: list[bool]


class Rendered(_Labelled):
    """A conversation as tokens: a pair (ids, label mask).

    Attributes:
        ids: the token ids.
        label_mask: for each token, whether the model is to predict it and its loss counts. Not shifted: where it is
            true, the prediction is made at the token before.
        images: the places in ``ids`` of each picture's tokens, those before and after its visual tokens included.
    """

    images: tuple[range, ...]

    def __new__(cls, ids: list[int], label_mask: list[bool], images: tuple[range, ...] = ()) -> Rendered:
        self = super().__new__(cls, ids, label_mask)
        self.images = images
        return self

    @property
    def visual_places(self) -> list[int]:
        """The places in ``ids`` of all visual tokens, without the tokens around each picture."""
        return [place for image in self.images for place in image[1:-1]]


def render(
    template: str | Template,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    *,
    image_tokens: Sequence[int] = (),
    system: str | None = "default",
    labels: str = "llamafactory",
    frames: int = 8,
    reference: bool = False,
) -> Rendered:
    """Turn a conversation into token ids and the mask of the tokens that carry loss.

    If the last message is the user's, the ids end where the answer begins (``<|im_start|>assistant\\n``) and no token
    carries loss: this is the prompt to generate from. A begin-of-text token comes first if the tokenizer has one and
    the template wants it.
    Text that looks like an added token, such as "<|im_end|>", becomes that token, as in both references; see
    :func:`special_in`.

    Args:
        template: a name in TEMPLATES, or a template of your own.
        messages: [{"role": "system" | "user" | "assistant", "content": "… <image> …"}, …]. An optional system message
            comes first, then user and assistant take turns. Pictures stand in the user's messages.
        tokenizer: of the checkpoint, see :func:`fvjax.data.tokenizers.load`.
        image_tokens: the number of visual tokens of each picture, in order: 256 times its tiles, thumbnail included.
        system: the system message of a conversation that brings none: "default" for the template's own, None for no
            system turn, or a text.
        labels: which tokens carry loss. "llamafactory": the answer, the token that ends its turn and the line
            break after it; they are tokenised apart from what stands before. "internvl_chat": the same without the line
            break; the turn is tokenised as a whole, so that an answer that begins with a line break has other ids, and
            its first tokens do not count.
        frames: of a clip, for which ``<video>`` stands in a message; only for templates with placeholders. These take
            neither ``image_tokens`` nor ``labels``: PLACEHOLDER_ID stands for each picture and frame, and the answers
            with the token that ends them carry loss.
        reference: do with placeholders as the published code does where it says nothing: leave out pictures of a
            message beyond the sixteenth, and let no token carry loss if the rounds do not add up.
    Raises:
        ValueError: the messages do not make a conversation, the numbers of ``<image>`` and of pictures differ, the
            template or convention is unknown, or the tokenizer lacks a token that the template needs; with
            placeholders also more than 16 pictures in a message or one clip, or rounds that do not add up
            (placeholders.Mismatch).
    """
    chosen = _template(template)
    if labels not in LABELS:
        raise ValueError(f"unknown label convention {labels!r}; choose one of {', '.join(LABELS)}")
    turns = _turns(chosen, messages, system)
    if chosen.placeholders:
        if image_tokens or labels != "llamafactory":
            raise ValueError(f"{chosen.name}: has a placeholder for each picture; leave image_tokens and labels out")
        return _with_placeholders(chosen, turns, tokenizer, frames, reference)
    _check_images(chosen, turns, image_tokens)
    writer = _Writer(chosen, tokenizer, [int(count) for count in image_tokens])
    for role, content in turns:
        turn: Turn = getattr(chosen, role)
        if role == "assistant":
            LABELS[labels](writer, turn, content)
        else:
            writer.write(turn.begin + content + turn.end)
    if turns[-1][0] == "user":
        writer.write(chosen.assistant.begin)
        writer.label_mask = [False] * len(writer.ids)
    return Rendered(writer.ids, writer.label_mask, tuple(writer.images))


def _with_placeholders(
    template: Template, turns: Sequence[tuple[str, str]], tokenizer: Tokenizer, frames: int, reference: bool
) -> Rendered:
    """Return a conversation with one PLACEHOLDER_ID for each picture and each frame of a clip."""
    stop_ids(template, tokenizer)
    texts = [_media(template, role, content, frames, reference) for role, content in turns]
    if sum(content.count(VIDEO) for _, content in turns) > placeholders.MAX_VIDEOS:
        raise ValueError(f"more than one {VIDEO} in a conversation; ask about each clip by itself")
    prompt = turns[-1][0] == "user"
    pieces = []
    for (role, _), text in zip(turns, texts):
        turn: Turn = getattr(template, role)
        # The published code takes an empty answer for one that is to come.
        pieces.append(turn.begin + text + turn.end if text or role != "assistant" else turn.begin.rstrip())
    text = "".join(pieces) + (template.assistant.begin.rstrip() if prompt else "")
    ids = placeholders.encode(text, tokenizer)
    mask = [False] * len(ids)
    if not prompt:
        separator = template.user.end + template.assistant.begin
        try:
            mask = placeholders.label_mask(text, ids, tokenizer, separator, template.assistant.end)
        except placeholders.Mismatch:
            if not reference:
                raise
    places = tuple(range(place, place + 1) for place, id in enumerate(ids) if id == PLACEHOLDER_ID)
    return Rendered(ids, mask, places)


def _media(template: Template, role: str, content: str, frames: int, reference: bool) -> str:
    """Return a message with ``<image>`` for each picture and frame. Raises ValueError: too many, or not the user's."""
    if role != "user" and (IMAGE in content or VIDEO in content):
        raise ValueError(f"a message of the {role} contains {IMAGE} or {VIDEO}; they stand in the user's messages")
    if (count := content.count(IMAGE)) > placeholders.MAX_IMAGES:
        if not reference:
            raise ValueError(f"{count} {IMAGE} in a message; {placeholders.MAX_IMAGES} are allowed")
        content = content.replace(IMAGE * count, IMAGE * placeholders.MAX_IMAGES)
    return placeholders.with_frames(content, frames, template.between_frames)


def stop_ids(template: str | Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer. Raises ValueError: the tokenizer lacks one."""
    chosen = _template(template)
    return tuple(_added_id(token, chosen, tokenizer) for token in chosen.stop)


def special_in(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return the added tokens, such as "<|im_end|>", that a message's text contains: it may not mean them."""
    return [token for token in tokenizer.added if token in text]


def check_length(rendered: Rendered, length: int, location: str) -> None:
    """Raise ValueError if more than ``length`` tokens are there, saying what cutting them off would destroy.

    location: the name for errors, such as "train.json record 17".
    """
    count = len(rendered.ids)
    if count <= length:
        return
    lost = [
        f"picture {number} (tokens {places.start} to {places.stop - 1})"
        for number, places in enumerate(rendered.images, 1)
        if places.stop > length
    ]
    if any(rendered.label_mask[length:]):
        lost.append("an answer")
    raise ValueError(
        f"{location}: has {count} tokens, {length} are allowed, and cutting would go through or lose "
        f"{' and '.join(lost) or 'the end of the prompt'}; allow more tokens or fewer tiles, or leave it out"
    )


def show(rendered: Rendered, tokenizer: Tokenizer) -> Text:
    """Return a rendered conversation for a terminal, with ⟦…⟧ and colour around the tokens that carry loss.

    Repeated added tokens are shortened (<IMG_CONTEXT>×256), and ↵ stands before each line break.
    """
    shown = Text()
    for counted, run in groupby(zip(rendered.ids, rendered.label_mask), key=lambda pair: pair[1]):
        text = _shortened([id for id, _ in run], tokenizer)
        if counted:
            body = text.removesuffix("\n")
            text = f"⟦{body}⟧{text[len(body) :]}"
        shown.append(text, style="bold green" if counted else "")
    return shown


def _template(template: str | Template) -> Template:
    """Return a template by its name, or as it is. Raises ValueError: there is none of that name."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown chat template {template!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


def _turns(template: Template, messages: Sequence[Mapping[str, str]], system: str | None) -> list[tuple[str, str]]:
    """Return (role, content) of each turn, the system turn included. Raises ValueError: this is no conversation."""
    turns = [_turn(number, message) for number, message in enumerate(messages, 1)]
    first = 1 if turns and turns[0][0] == "system" else 0
    if not turns[first:]:
        raise ValueError("the conversation is empty: it needs a message of the user")
    for number, (role, _) in enumerate(turns[first:]):
        if role != ("user", "assistant")[number % 2]:
            raise ValueError(f"message {first + number + 1}: {_disorder(role, number)}")
    default = template.system_message if system == "default" else system
    if not first and default is not None:
        turns.insert(0, ("system", default))
    if turns[0] == ("system", ""):
        raise ValueError("the system message is empty; leave it out, and give system=None for no system turn")
    return turns


def _turn(number: int, message: Mapping[str, str]) -> tuple[str, str]:
    """Return a message's role and content. Raises ValueError: it has others, or they are not text."""
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise ValueError(f"message {number}: expected the keys role and content, not {message!r:.80}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"message {number}: unknown role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number}: the content must be a text, not {content!r:.80}")
    return role, content


def _disorder(role: str, number: int) -> str:
    """Say why a message of this role cannot be number `number` (from 0) after the system message."""
    if role == "system":
        return "a system message must be the first one"
    if number == 0:
        return "the conversation must begin with a message of the user, after the system message if there is one"
    return f"two messages of the {role} in a row; join them, or leave the example out"


def _check_images(template: Template, turns: Sequence[tuple[str, str]], image_tokens: Sequence[int]) -> None:
    """Raise ValueError unless each <image> in the user's messages has its picture."""
    context = template.image[1]
    for role, content in turns:
        if role != "user" and IMAGE in content:
            raise ValueError(f"a message of the {role} contains {IMAGE}; pictures stand in the user's messages")
        if context in content:
            raise ValueError(f"a message of the {role} contains {context}; write {IMAGE} where a picture stands")
    places = sum(content.count(IMAGE) for _, content in turns)
    if places != len(image_tokens):
        remedy = f"write {IMAGE} once for each picture"
        raise ValueError(f"the conversation has {places} {IMAGE} but {len(image_tokens)} pictures; {remedy}")
    if wrong := [count for count in image_tokens if count < 1]:
        raise ValueError(f"image_tokens: a picture has at least one visual token, not {wrong[0]}")


@dataclass
class _Writer:
    """Collects the tokens of a conversation."""

    template: Template
    tokenizer: Tokenizer
    image_tokens: list[int]  # of the pictures to come
    ids: list[int] = field(default_factory=list)
    label_mask: list[bool] = field(default_factory=list)
    images: list[range] = field(default_factory=list)

    def __post_init__(self) -> None:
        stop_ids(self.template, self.tokenizer)  # they must be single tokens in what is learned, too
        if self.template.begin_of_text and self.tokenizer.bos_id is not None:
            self._append([self.tokenizer.bos_id], [False])

    def write(self, text: str, counted: bool = False) -> None:
        """Append a text with its pictures; counted: its tokens carry loss."""
        for number, part in enumerate(text.split(IMAGE)):
            ids = self._next_image() if number else []
            ids += self.tokenizer.encode(part)
            self._append(ids, [counted] * len(ids))

    def write_counted_from(self, text: str, start: int) -> None:
        """Append a text; all its tokens but the first ``start`` and the last one carry loss."""
        ids = self.tokenizer.encode(text)
        self._append(ids, [start <= place < len(ids) - 1 for place in range(len(ids))])

    def _next_image(self) -> list[int]:
        begin, context, end = (_added_id(token, self.template, self.tokenizer) for token in self.template.image)
        ids = [begin, *[context] * self.image_tokens.pop(0), end]
        self.images.append(range(len(self.ids), len(self.ids) + len(ids)))
        return ids

    def _append(self, ids: list[int], label_mask: list[bool]) -> None:
        self.ids += ids
        self.label_mask += label_mask


def _llamafactory(writer: _Writer, turn: Turn, answer: str) -> None:
    """Write an answer as LLaMA-Factory does: tokenised apart from what stands before, all of it counted."""
    writer.write(turn.begin)
    writer.write(answer + turn.end, counted=True)


def _internvl_chat(writer: _Writer, turn: Turn, answer: str) -> None:
    """Write an answer as internvl_chat does: its turn tokenised whole; so many tokens as begin it do not count."""
    writer.write_counted_from(turn.begin + answer + turn.end, start=len(writer.tokenizer.encode(turn.begin)))


LABELS: dict[str, Callable[[_Writer, Turn, str], None]] = {
    "llamafactory": _llamafactory,
    "internvl_chat": _internvl_chat,
}


def _added_id(token: str, template: Template, tokenizer: Tokenizer) -> int:
    """Return an added token's id. Raises ValueError: the tokenizer lacks it."""
    if token not in tokenizer.added:
        raise ValueError(
            f"{tokenizer.path}: the tokenizer has no token {token}, which the chat template {template.name} needs; "
            "choose the template of this checkpoint, or copy all of the tokenizer's files"
        )
    return tokenizer.added[token]


def _shortened(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Decode ids for a terminal: repeated added tokens once, ↵ before line breaks, control characters as escapes."""
    added = set(tokenizer.added.values())
    text = ""
    for repeated, group in groupby(ids, key=lambda id: id if id in added else None):
        run = list(group)
        if repeated is None or len(run) == 1:
            text += tokenizer.decode(run)
        else:
            text += f"{tokenizer.decode([repeated])}×{len(run)}"
    text = "".join(c if c == "\n" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text)
    return text.replace("\n", "↵\n")
