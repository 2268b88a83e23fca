"""Read a configuration key by key: every key is used, known to change nothing, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def _because(reason: str, *keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, reason)


# Keys of any transformers configuration that do not change what a model computes, each with the reason.
COMMON: Mapping[str, str] = {
    **_because(
        "names the code that other programs run; here `architectures` decides",
        *("model_type", "auto_map", "_auto_class", "tokenizer_class", "task_specific_params", "finetuning_task"),
    ),
    **_because(
        "says where the file comes from",
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "fvjax"),
    ),
    **_because("every tensor is read in the dtype that it is stored in", "torch_dtype", "dtype", "use_bfloat16"),
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
    **_because("initialises the weights, which are read here", "initializer_range", "initializer_factor"),
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
    """A JSON object that records which of its keys are read; :meth:`finish` refuses the keys that nobody has read.

    transformers writes null for a key that is not set, so null counts as a missing key.

    Args:
        values: config.json, or a part of it.
        location: the file, and the part of it, for messages.
        name: what is configured, for messages.
    Raises ValueError if ``values`` is not a JSON object. The methods' errors name the location, the key and its value.
    """

    def __init__(self, values: Any, location: str, name: str = "the configuration"):
        if not isinstance(values, Mapping):
            raise ValueError(f"{location}: {name} is {values!r}, not a JSON object")
        self.values = values
        self.location = location
        self.name = name
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key as it is written, or ``default``."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return the value of a required key."""
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.location}: {self.name} has no {key!r}")
        return value

    def part(self, key: str, name: str) -> Options:
        """Return the JSON object of a required key."""
        return Options(self.need(key), f"{self.location} ({key})", name)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least ``least``; without a default the key is required."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{self.location}: {key}={value!r} is not a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """Return a finite number above ``least``; without a default the key is required."""
        value = self.need(key) if default is None else self.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= least:
            raise ValueError(f"{self.location}: {key}={value!r} is not a number above {least:g}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; without a default the key is required."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.location}: {key}={value!r} is neither true nor false")
        return value

    def choice(self, key: str, known: Mapping[str, Any] | Sequence[str]) -> Any:
        """Return one of the words in ``known``, or what ``known`` maps it to; the key is required."""
        value = self.need(key)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{self.location}: {key}={value!r} is not supported; known are {sorted(known)}")
        return known[value] if isinstance(known, Mapping) else value

    def only(self, key: str, value: Any, remedy: str = "") -> None:
        """Refuse every value but the supported one, which a missing key means as well."""
        actual = self.get(key, value)
        if actual != value:
            advice = f"; {remedy}" if remedy else ""
            raise ValueError(f"{self.location}: {key}={actual!r} is not supported; only {value!r} is{advice}")

    def finish(self, irrelevant: Mapping[str, str], unset: Sequence[Any] = ()) -> None:
        """Refuse keys that were neither read nor are in ``irrelevant`` (key -> why it changes nothing).

        ``unset``: values that mean, like null, that a key is not set.
        """
        unread = {k: v for k, v in self.values.items() if k not in self._read and k not in irrelevant}
        unknown = {k: v for k, v in unread.items() if v is not None and not any(v is u or v == u for u in unset)}
        if unknown:
            key, value = min(unknown.items())
            raise ValueError(
                f"{self.location}: unknown keys {sorted(unknown)}: the effect of {key}={value!r} would be ignored. "
                "If it has none, remove the key from the file"
            )

    def finish_model(self, irrelevant: Mapping[str, str] | None = None) -> None:
        """Finish the configuration of a transformers model; ``irrelevant`` is in addition to `COMMON`."""
        self.only("is_encoder_decoder", False)
        self.only("add_cross_attention", False)
        self.only("pruned_heads", {})
        if (quantized := self.get("quantization_config")) is not None:
            remedy = "quantised weights are not read; use the checkpoint that they were made from"
            raise ValueError(f"{self.location}: quantization_config={quantized!r} is not supported: {remedy}")
        self.finish({**COMMON, **(irrelevant or {})})
