"""Token ids with a placeholder for each picture, as LLaVA's family of models has them, and which of them carry loss.

The text is split at ``<image>``, each piece is tokenised by itself, and PLACEHOLDER_ID stands between the pieces until
the model replaces it by visual tokens. Source: `tokenizer_image_token` and `preprocess_v1` of LLaVA, Video-LLaVA and
Face-LLaVA.
"""

from __future__ import annotations

from fvjax.data.tokenizers import Tokenizer

IMAGE, VIDEO = "<image>", "<video>"  # the place of a picture, and of a clip, in a text
PLACEHOLDER_ID = -200  # in place of a picture or of one frame of a clip
MAX_IMAGES = 16  # of one message, in the published models
MAX_VIDEOS = 1  # of one conversation


class Mismatch(ValueError):
    """The rounds of a conversation do not add up to its tokens, so that nobody can say which tokens are answers."""


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a text, PLACEHOLDER_ID for each ``<image>``; the begin-of-text token comes first."""
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for number, piece in enumerate(text.split(IMAGE)):
        ids += [PLACEHOLDER_ID] if number else []
        ids += tokenizer.encode(piece)
    return ids


def with_frames(text: str, frames: int, joint: str) -> str:
    """Replace each ``<video>`` by ``frames`` ``<image>``, with ``joint`` between them."""
    return text.replace(VIDEO, joint.join([IMAGE] * frames))


def label_mask(text: str, ids: list[int], tokenizer: Tokenizer, separator: str, end: str) -> list[bool]:
    """Tell which tokens of a conversation carry loss: the answers and the token that ends each of them.

    The text is split into rounds at ``end``. The tokens of a round up to its separator are counted by tokenising that
    part alone, without its begin-of-text token and without the blank that ends it.

    Args:
        text: the whole conversation.
        ids: its tokens, from :func:`encode`.
        separator: what stands before an answer, " ASSISTANT: ".
        end: what ends an answer, "</s>".
    Raises:
        Mismatch: the rounds do not add up: an answer is empty, or a text contains the separator or ``end``.
    """
    begin = int(tokenizer.bos_id is not None)
    mask = [False] * begin + [True] * (len(ids) - begin)
    at = begin
    for round_ in text.split(end):
        question, found, answer = round_.partition(separator)
        if not found or separator in answer:
            break
        question_tokens = len(encode(question + separator, tokenizer)) - begin - 1
        mask[at : at + question_tokens] = [False] * question_tokens
        at += len(encode(round_, tokenizer)) - begin + 1  # and the token that ends the answer
    if at != len(ids):
        raise Mismatch(
            f"the rounds of the conversation have {at} tokens, the whole {len(ids)}: an answer is empty, or a text "
            f"contains {separator.strip()!r} or {end!r}; correct it or leave the conversation out"
        )
    return mask
