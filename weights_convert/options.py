"""Read a configuration key by key: each is used, known to change nothing, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def _because(reason: str, *keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, reason)


# Keys of any transformers configuration that do not change what a model computes, each with the reason.
COMMON: Mapping[str, str] = {
    **_because(
        "names the code that is run elsewhere; `architectures` decides here",
        *("model_type", "auto_map", "_auto_class", "tokenizer_class", "task_specific_params", "finetuning_task"),
    ),
    **_because(
        "says where the file comes from",
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "fvjax"),
    ),
    **_because("each tensor is read in the dtype that it is stored in", "torch_dtype", "dtype", "use_bfloat16"),
    **_because(
        "chooses between implementations of the same sums",
        *(
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
        ),
        *("_flash_attn_2_enabled", "_use_flash_attention_2", "use_flash_attn", "_experts_implementation"),
        *("chunk_size_feed_forward", "torchscript", "tf_legacy_loss", "gradient_checkpointing"),
    ),
    **_because("draws the weights that are read here", "initializer_range", "initializer_factor"),
    **_because(
        "says what a call returns",
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
        "use_cache",
    ),
    **_because("belongs to a classifier", "id2label", "label2id", "num_labels", "problem_type"),
    **_because(
        "belongs to text generation, which takes its settings from its caller",
        *("eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "max_length"),
        *("min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
        *("begin_suppress_tokens", "exponential_decay_length_penalty", "prefix", "is_decoder", "tie_encoder_decoder"),
    ),
}


class Options:
    """The keys of a JSON object, each noted as it is read; :meth:`finish` refuses those that nobody has read.

    null is how transformers writes a key that is not set, so it counts as a key that is not there.

    Args:
        values: config.json, or a part of it.
        location: the file, and the part of it, for messages.
        name: what is configured, for messages.
    Raises ValueError: ``values`` is not a JSON object. The methods raise it naming the location, the key and its value.
    """

    def __init__(self, values: Any, location: str, name: str = "the configuration"):
        if not isinstance(values, Mapping):
            raise ValueError(f"{location}: {name} is {values!r}, not a JSON object")
        self.values, self.location, self.name = values, location, name
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key as it is written, or ``default``."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """As :meth:`get`; the key must be there."""
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.location}: {self.name} has no {key!r}")
        return value

    def part(self, key: str, name: str) -> Options:
        """A JSON object inside of this one; the key must be there."""
        return Options(self.need(key), f"{self.location} ({key})", name)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least ``least``; without a default the key must be there."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{self.location}: {key}={value!r} is not a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number above ``least``."""
        value = self.need(key) if default is None else self.get(key, default)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or value <= least:
            raise ValueError(f"{self.location}: {key}={value!r} is not a number above {least:g}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.location}: {key}={value!r} is neither true nor false")
        return value

    def choice(self, key: str, known: Mapping[str, Any] | Sequence[str]) -> Any:
        """One of the words in ``known``: what that maps it to, or the word."""
        value = self.need(key)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{self.location}: {key}={value!r} is not supported; known are {sorted(known)}")
        return known[value] if isinstance(known, Mapping) else value

    def only(self, key: str, value: Any, remedy: str = "") -> None:
        """Refuse any other value than the one that this version computes, which is also what leaving it out means."""
        given = self.get(key, value)
        if given != value:
            told = f"only {value!r} is{f'; {remedy}' if remedy else ''}"
            raise ValueError(f"{self.location}: {key}={given!r} is not supported; {told}")

    def finish(self, irrelevant: Mapping[str, str], unset: Sequence[Any] = ()) -> None:
        """Refuse the first key that was neither read nor is in ``irrelevant`` (key -> why it changes nothing).

        ``unset``: values besides null that mean that a key is not set, whichever it is.
        """
        unread = {k: v for k, v in self.values.items() if k not in self._read and k not in irrelevant}
        unknown = {k: v for k, v in unread.items() if v is not None and not any(v is u or v == u for u in unset)}
        if unknown:
            key, value = min(unknown.items())
            told = f"what {key}={value!r} changes would be left out. If it changes nothing, remove it from the file"
            raise ValueError(f"{self.location}: unknown keys {sorted(unknown)}: {told}")

    def finish_model(self, irrelevant: Mapping[str, str] | None = None) -> None:
        """:meth:`finish` for the configuration of a transformers model, ``irrelevant`` beside what all of them have."""
        self.only("is_encoder_decoder", False)
        self.only("add_cross_attention", False)
        self.only("pruned_heads", {})
        if (quantized := self.get("quantization_config")) is not None:
            told = "quantised weights are not read; take the checkpoint that it was made from"
            raise ValueError(f"{self.location}: quantization_config={quantized!r} is not supported: {told}")
        self.finish({**COMMON, **(irrelevant or {})})
