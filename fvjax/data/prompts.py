"""The prompts of LLM-FaceVerification as token ids.

    tokenizer = tokenizers.load("data/InternVL2-2B")                        from fvjax.data import tokenizers
    [tokenizer.bos_id, *visual tokens, *prompt_ids(tokenizer)]              scenario 2
    [tokenizer.bos_id, *two images' tokens, *pair_prompt_ids(tokenizer)]    scenario 3; yes_no_ids are the answers

LLM-FaceVerification builds its prompts without a chat template and without <img> tags.
"""

from __future__ import annotations

from fvjax.data.tokenizers import Tokenizer

PROMPT = "Describe this person's facial features for identification."
PAIR_PROMPT = "Do these two images show the same person? Answer Yes or No."


def prompt_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the 10 ids that follow the visual tokens in scenario 2."""
    return tokenizer.encode(PROMPT)


def pair_prompt_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the 14 ids that follow both images' visual tokens in scenario 3."""
    return tokenizer.encode(PAIR_PROMPT)


def yes_no_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of the answers Yes and No, 9583 and 2917 in InternLM2.

    Raises:
        ValueError: the tokenizer splits one of them into several tokens.
    """
    yes, no = tokenizer.encode("Yes"), tokenizer.encode("No")
    if len(yes) != 1 or len(no) != 1 or yes == no:
        raise ValueError(
            f"{tokenizer.path}: 'Yes' and 'No' must be one token each, here they are {yes} and {no}; use the tokenizer "
            "of the checkpoint"
        )
    return yes[0], no[0]
