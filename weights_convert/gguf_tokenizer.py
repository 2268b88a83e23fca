"""Convert the tokenizer in a GGUF file's metadata to tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from weights_convert.options import Options

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type
KINDS = (NORMAL, CONTROL, USER_DEFINED)

# Keys of the metadata that name a token, and the name that transformers gives it.
NAMED_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token",
    "tokenizer.ggml.eos_token_id": "eos_token",
    "tokenizer.ggml.unknown_token_id": "unk_token",
    "tokenizer.ggml.padding_token_id": "pad_token",
}


class GgufTokenizer(NamedTuple):
    """A tokenizer, and what a checkpoint directory says about it."""

    tokenizer: Tokenizer
    config: dict[str, Any]  # tokenizer_config.json
    ids: dict[str, int]  # of the named tokens, such as bos_token


def _smollm() -> PreTokenizer:
    """Return SmolLM's pre-tokenizer: every digit by itself, and between them GPT-2's split.

    Sources: llama.cpp (llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM); SmolLM2's tokenizer.json.
    """
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


PRE_TOKENIZERS = {"smollm": _smollm}  # tokenizer.ggml.pre -> how a text is split before its bytes are merged


def read_tokenizer(options: Options) -> GgufTokenizer:
    """Build the byte-level BPE that the metadata describe; ``options`` records the keys that are read.

    Raises ValueError: another kind of tokenizer, an unknown pre-tokenizer, a setting that changes ids, or tokens and
    merges that contradict each other.
    """
    options.choice("tokenizer.ggml.model", ("gpt2",))
    split = options.choice("tokenizer.ggml.pre", PRE_TOKENIZERS)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        options.only(f"tokenizer.ggml.{key}", False)
    tokens = _texts(options, "tokenizer.ggml.tokens")
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ValueError(f"{options.location}: tokenizer.ggml.tokens has a token twice")
    kinds = _token_kinds(options, tokens)
    merges = _merges(options, vocab)

    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = split()  # type: ignore[assignment]  (the stubs know getters only)
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    for token, kind in zip(tokens, kinds):
        if kind != NORMAL:
            special = kind == CONTROL
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(token, normalized=False, special=special)])

    ids = {name: _token_id(options, key, len(tokens)) for key, name in NAMED_TOKENS.items() if key in options.values}
    # Not GPT2Tokenizer, because transformers 5 gives that class its own split.
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: tokens[id] for name, id in ids.items()}
    if template := options.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return GgufTokenizer(tokenizer, config, ids)


def _texts(options: Options, key: str) -> Sequence[str]:
    """Return a required array of texts."""
    value = options.need(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{options.location}: {key} is {value!r}, not an array of texts")
    return value


def _token_kinds(options: Options, tokens: Sequence[str]) -> Sequence[int]:
    """Return every token's kind. Raises ValueError for unknown kinds, and for a normal token that is not of bytes."""
    kinds = options.need("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ValueError(f"{options.location}: tokenizer.ggml.token_type is {kinds!r}, there are {len(tokens)} tokens")
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    for id, (token, kind) in enumerate(zip(tokens, kinds)):
        if kind not in KINDS:
            raise ValueError(f"{options.location}: token {id} ({token!r}) is of kind {kind}; known are {KINDS}")
        if kind == NORMAL and not alphabet.issuperset(token):
            raise ValueError(f"{options.location}: token {id} ({token!r}) is not written in GPT-2's byte alphabet")
    return kinds


def _merges(options: Options, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges as pairs of tokens. Raises ValueError for one whose parts or result are no tokens."""
    merges = []
    for number, text in enumerate(_texts(options, "tokenizer.ggml.merges")):
        left, _, right = text.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise ValueError(f"{options.location}: merge {number} ({text!r}) does not join two tokens to a third")
        merges.append((left, right))
    return merges


def _token_id(options: Options, key: str, count: int) -> int:
    id = options.count(key, least=0)
    if id >= count:
        raise ValueError(f"{options.location}: {key}={id}, but there are {count} tokens")
    return id
