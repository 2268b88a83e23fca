"""Test that every key of a checkpoint's configuration is used, known to have no effect, or refused by name.

The tables below describe published configurations. A generated test changes each of their keys. A key that is listed as
used must change an attribute of the model, and a key listed as irrelevant must not. Every other key must be refused by
an error that names the file, the key and its value. A key without an entry fails the test, and so does an entry without
an effect.
"""

import contextlib
import copy
import fnmatch
import json
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fvjax.models.decoder import Decoder
from fvjax.models.iresnet import IResNet
from fvjax.models.projector import Projector
from fvjax.models.vision_transformer import VisionTransformer
from tests.reference.recipe import GOLDEN
from weights_convert import (
    adapter_config,
    hub,
    internlm2,
    internvit,
    internvit_hf,
    internvl,
    internvl_hf,
    iresnet,
    llama,
    open_checkpoint,
    write,
)
from weights_convert.options import COMMON
from weights_convert.read import hashes

# Keys that transformers 4 writes for every text model, as in the llm_config of OpenGVLab/InternVL2_5-2B.
DUMP: dict[str, Any] = {
    "_name_or_path": "internlm/internlm2_5-1_8b-chat", "add_cross_attention": False,
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}, "bad_words_ids": None,
    "begin_suppress_tokens": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "eos_token_id": 2, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_range": 0.02, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "pad_token_id": 2,
    "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torchscript": False,
    "transformers_version": "4.37.2", "typical_p": 1.0, "use_bfloat16": False, "use_cache": True,
}  # fmt: skip
INTERNLM2: dict[str, Any] = DUMP | {
    "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "bias": False, "bos_token_id": 1,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 32768,
    "model_type": "internlm2", "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 92553,
}  # fmt: skip
# The text model of OpenGVLab/InternVL3-1B, as transformers 4.5x prints it.
QWEN2: dict[str, Any] = {
    "_name_or_path": "./pretrained/Qwen2.5-32B-Instruct", "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "layer_types": ["full_attention"] * 24, "max_position_embeddings": 32768, "max_window_layers": 70,
    "model_type": "qwen2", "moe_config": None, "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
    "sliding_window": None, "torch_dtype": "bfloat16", "use_bfloat16": True, "use_cache": False,
    "use_sliding_window": False, "vocab_size": 151674,
}  # fmt: skip
# The keys of Vicuna and those that later LLaMAs added.
LLAMA: dict[str, Any] = {
    "_name_or_path": "vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "max_sequence_length": 2048, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.33.1", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
# The keys other than sizes in LlamaConfig().to_dict() and Qwen2Config().to_dict() of transformers 5.
DUMP5: dict[str, Any] = {
    "_name_or_path": "", "chunk_size_feed_forward": 0, "dtype": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "output_attentions": False,
    "output_hidden_states": False, "problem_type": None, "return_dict": True, "transformers_version": "5.23.0",
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
OLD = ("rope_scaling", "rope_theta", "torch_dtype")
LLAMA5: dict[str, Any] = {k: v for k, v in LLAMA.items() if k not in OLD} | DUMP5
QWEN2_5: dict[str, Any] = {k: v for k, v in QWEN2.items() if k not in OLD} | DUMP5
VISION: dict[str, Any] = {
    "_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5", "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_intern_vit.InternVisionConfig"},
    "capacity_factor": 1.2, "drop_path_rate": 0.1, "dropout": 0.0, "eval_capacity_factor": 1.4, "hidden_act": "gelu",
    "hidden_size": 1024, "image_size": 448, "initializer_factor": 0.1, "initializer_range": 1e-10,
    "intermediate_size": 4096, "laux_allreduce": "all_nodes", "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b",
    "moe_coeff_ratio": 0.5, "moe_intermediate_size": 768, "moe_output_scale": 4.0,
    "noisy_gate_policy": "RSample_before", "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3,
    "num_experts": 8, "num_hidden_layers": 24, "num_routed_experts": 4, "num_shared_experts": 4, "patch_size": 14,
    "qk_normalization": False, "qkv_bias": True, "shared_expert_intermediate_size": 3072, "torch_dtype": "bfloat16",
    "use_bfloat16": True, "use_flash_attn": False, "use_moe": False, "use_residual": True, "use_rts": False,
    "use_weighted_residual": False,
}  # fmt: skip
CHAT: dict[str, Any] = {
    "_commit_hash": None, "architectures": ["InternVLChatModel"],
    "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}, "downsample_ratio": 0.5,
    "dynamic_image_size": True, "force_image_size": 448, "hidden_size": 896, "image_fold": None, "llm_config": QWEN2,
    "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat", "output_attentions": False,
    "pad2square": False, "ps_version": "v2", "select_layer": -1, "system_message": None, "template": "internvl2_5",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": None, "use_backbone_lora": 0,
    "use_llm_lora": 0, "use_thumbnail": True, "vision_config": VISION,
}  # fmt: skip
# of OpenGVLab/InternVL3-1B-hf, and what transformers 5 writes besides
VISION_HF: dict[str, Any] = {
    "architectures": ["InternVisionModel"], "attention_bias": True, "attention_dropout": 0.0, "dropout": 0.0,
    "dtype": "bfloat16", "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 1024,
    "image_size": [448, 448], "initializer_factor": 0.1, "initializer_range": 1e-10, "intermediate_size": 4096,
    "layer_norm_eps": 1e-06, "layer_scale_init_value": 0.1, "model_type": "internvl_vision",
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
    "patch_size": [14, 14], "projection_dropout": 0.0, "torch_dtype": "bfloat16",
    "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False,
}  # fmt: skip
CHAT_HF: dict[str, Any] = {
    "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "dtype": "bfloat16",
    "image_seq_length": 256, "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu",
    "text_config": QWEN2 | {"eos_token_id": 151645}, "tie_word_embeddings": None, "torch_dtype": "bfloat16",
    "transformers_version": "4.52.0", "vision_config": VISION_HF, "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}  # fmt: skip
RESNET = {"architectures": ["IResNet"], "layers": [3, 4, 14, 3], "widths": [64, 128, 256, 512], "num_features": 512}

# Key -> (another legal value, the attributes that it changes). All other differences follow from these.
USED_DECODER = {
    "vocab_size": (200000, {"vocab": 200000}),
    "num_hidden_layers": (2, {"depth": 2}),
    "intermediate_size": (96, {"mlp_dim": 96}),
    "max_position_embeddings": (512, {"positions": 512}),
    "rms_norm_eps": (1e-3, {"norm_eps": 1e-3}),
    "num_key_value_heads": (1, {"kv_heads": 1}),
    "rope_theta": (500.0, {"rope_theta": 500.0}),
    "rope_scaling": (
        {"type": "linear", "factor": 8.0},
        {"rope": "linear", "rope_factor": 8.0},
    ),
    "tie_word_embeddings": (True, {"tied": True}),
}
USED_INTERNLM2 = USED_DECODER | {
    "hidden_size": (4096, {"width": 4096, "head_dim": 256}),
    "num_attention_heads": (32, {"heads": 32, "head_dim": 64}),
    "bias": (True, {"qkv_bias": True, "out_bias": True}),
}
USED_QWEN2 = USED_DECODER | {
    "hidden_size": (1792, {"width": 1792, "head_dim": 128}),
    "num_attention_heads": (28, {"heads": 28, "head_dim": 32}),
    "head_dim": (128, {"head_dim": 128}),
}
USED_LLAMA = USED_DECODER | {
    "hidden_size": (2048, {"width": 2048}),
    "num_attention_heads": (64, {"heads": 64}),
    "head_dim": (64, {"head_dim": 64}),
    "attention_bias": (True, {"qkv_bias": True, "out_bias": True}),
    "mlp_bias": (True, {"mlp_bias": True}),
}
ROPE5 = (
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 7.0},
    {"rope": "dynamic", "rope_factor": 4.0, "rope_theta": 7.0},
)
USED_LLAMA5 = {k: v for k, v in USED_LLAMA.items() if k not in OLD} | {"rope_parameters": ROPE5}
USED_QWEN2_5 = {k: v for k, v in USED_QWEN2.items() if k not in OLD} | {"rope_parameters": ROPE5}
USED_VISION = {
    "image_size": (224, {"image_size": 224}),
    "patch_size": (28, {"patch_size": 28}),
    "hidden_size": (3200, {"width": 3200}),
    "num_hidden_layers": (45, {"depth": 45}),
    "num_attention_heads": (8, {"heads": 8}),
    "intermediate_size": (12800, {"mlp_dim": 12800}),
    "qkv_bias": (False, {"qkv_bias": False}),
    "norm_type": ("rms_norm", {"norm": "rms"}),
    "layer_norm_eps": (1e-3, {"norm_eps": 1e-3}),
    "qk_normalization": (True, {"qk_norm": True}),
    "hidden_act": ("quick_gelu", {"act": "quick_gelu"}),
    "drop_path_rate": (0.4, {"drop_path": 0.4}),
}
USED_CHAT = {
    "select_layer": (-4, {"vision.select_layer": -4}),
    "downsample_ratio": (0.25, {"projector.shuffle": 4}),
    "ps_version": ("v1", {"projector.ps_version": "v1"}),
}
USED_VISION_HF = {
    "image_size": ([224, 224], {"image_size": 224}),
    "patch_size": (28, {"patch_size": 28}),
    "hidden_size": (3200, {"width": 3200}),
    "num_hidden_layers": (45, {"depth": 45}),
    "num_attention_heads": (8, {"heads": 8}),
    "intermediate_size": (12800, {"mlp_dim": 12800}),
    "attention_bias": (False, {"qkv_bias": False}),
    "norm_type": ("rms_norm", {"norm": "rms"}),
    "layer_norm_eps": (1e-3, {"norm_eps": 1e-3}),
    "use_qk_norm": (True, {"qk_norm": True}),
    "hidden_act": ("quick_gelu", {"act": "quick_gelu"}),
    "drop_path_rate": (0.4, {"drop_path": 0.4}),
}
USED_CHAT_HF = {
    "vision_feature_layer": (-4, {"vision.select_layer": -4}),
    "tie_word_embeddings": (True, {"decoder.tied": True}),
}
USED_RESNET = {
    "layers": ([2, 2, 2, 2], {"layers": (2, 2, 2, 2)}),
    "widths": ([8, 8, 8, 8], {"widths": (8, 8, 8, 8)}),
    "num_features": (128, {"num_features": 128}),
}

# Key -> a value for a computation that this version does not support.
REFUSED_COMMON = {
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "pruned_heads": {"0": [1]},
    "cross_attention_hidden_size": 64,
    "quantization_config": {"quant_method": "awq", "bits": 4},
    "no_such_key": "x",
    "residual_multiplier": 0.22,  # of Granite
    "use_new_thing": False,  # unknown keys are refused even if false: elsewhere the feature may be on
}
REFUSED_DECODER = REFUSED_COMMON | {
    "hidden_act": "gelu_pytorch_tanh",
    "attention_dropout": 0.1,
    "use_sliding_window": True,
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 4096,
    "layer_types": ["full_attention", "sliding_attention"],
    "final_logit_softcapping": 30.0,
    "num_experts": 8,
    "moe_config": {"experts": 4},
    "rope_interleaved": True,
    "norm_type": "layer_norm",
}
REFUSED_INTERNLM2 = REFUSED_DECODER | {
    "sliding_window": 4096,
    "max_window_layers": 2,
    "head_dim": 96,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_pos_id_version": "v2pe_fix",
    "rope_pos_id_stride": 64,
}
REFUSED_QWEN2 = REFUSED_DECODER | {"attention_bias": False, "mlp_bias": True, "bias": True}
REFUSED_LLAMA = REFUSED_DECODER | {"sliding_window": 4096, "max_window_layers": 2, "bias": True}
REFUSED_VISION = REFUSED_COMMON | {
    "hidden_act": "gelu_new",
    "norm_type": "group_norm",
    "num_channels": 1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "use_moe": True,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.1,
    "qk_norm": True,
}
REFUSED_CHAT = REFUSED_COMMON | {
    "force_image_size": 224,
    "hidden_size": 64,
    "image_fold": 2,
    "use_backbone_lora": 8,
    "use_llm_lora": 8,
    "ps_version": "v3",
    "downsample_ratio": 0.4,
    "tie_word_embeddings": True,
    "vision_feature_layer": -2,
}
REFUSED_VISION_HF = REFUSED_COMMON | {
    "hidden_act": "gelu_new",
    "norm_type": "group_norm",
    "num_channels": 1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "hidden_dropout_prob": 0.1,
    "projection_dropout": 0.1,
    "use_mask_token": True,
    "use_absolute_position_embeddings": False,
    "use_mean_pooling": False,
    "image_size": [448, 224],
    "patch_size": [14],
    "qkv_bias": True,
}
REFUSED_CHAT_HF = REFUSED_COMMON | {
    "projector_hidden_act": "silu",
    "vision_feature_select_strategy": "full",
    "vision_feature_layer": [-1, -2],
    "image_seq_length": 64,
    "downsample_ratio": 0.4,
    "tie_word_embeddings": "yes",
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
}
REFUSED_RESNET = REFUSED_COMMON | {"se": True, "dropout": 0.4, "image_size": 224}

# Name -> (configuration, its reader, what is used, what is refused, what is irrelevant)
CASES: dict[str, tuple] = {
    "InternLM2": (INTERNLM2, internlm2, USED_INTERNLM2, REFUSED_INTERNLM2, {**COMMON, **llama.IRRELEVANT}),
    "Qwen2": (QWEN2, llama, USED_QWEN2, REFUSED_QWEN2, {**COMMON, **llama.IRRELEVANT, **llama.QWEN2_IRRELEVANT}),
    "Qwen2, transformers 5": (
        QWEN2_5,
        llama,
        USED_QWEN2_5,
        REFUSED_QWEN2,
        {**COMMON, **llama.IRRELEVANT, **llama.QWEN2_IRRELEVANT},
    ),
    "LLaMA": (LLAMA, llama, USED_LLAMA, REFUSED_LLAMA, {**COMMON, **llama.IRRELEVANT}),
    "LLaMA, transformers 5": (LLAMA5, llama, USED_LLAMA5, REFUSED_LLAMA, {**COMMON, **llama.IRRELEVANT}),
    "InternViT": (VISION, internvit, USED_VISION, REFUSED_VISION, {**COMMON, **internvit.IRRELEVANT}),
    "InternVL": (CHAT, internvl, USED_CHAT, REFUSED_CHAT, {**COMMON, **internvit.CHAT_IRRELEVANT}),
    "InternViT, -hf": (
        VISION_HF,
        internvit_hf,
        USED_VISION_HF,
        REFUSED_VISION_HF,
        {**COMMON, **internvit_hf.IRRELEVANT},
    ),
    "InternVL, -hf": (CHAT_HF, internvl_hf, USED_CHAT_HF, REFUSED_CHAT_HF, {**COMMON, **internvit_hf.CHAT_IRRELEVANT}),
    "IResNet": (RESNET, iresnet, USED_RESNET, REFUSED_RESNET, COMMON),
}
STRUCTURE = {"architectures", "vision_config", "llm_config", "text_config"}  # has its own tests below


def flat(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return nested attributes with dotted names."""
    out = {}
    for name, value in attributes.items():
        out |= {f"{name}.{k}": v for k, v in flat(value).items()} if isinstance(value, dict) else {name: value}
    return out


def attributes(table, config) -> dict[str, Any]:
    return flat(table.model_config(copy.deepcopy(config), "DIR/config.json"))


def cases(index: int) -> list:
    """Return (case, key) for each key of a table of each case."""
    return [pytest.param(name, key, id=f"{name}-{key}") for name, case in CASES.items() for key in case[index]]


@pytest.mark.parametrize("name", CASES)
def test_every_key_of_a_published_configuration_has_an_entry(name):
    config, _, used, refused, irrelevant = CASES[name]
    unlisted = set(config) - set(used) - set(refused) - set(irrelevant) - STRUCTURE
    assert not unlisted, "say what these keys change, or why they change nothing"
    assert not set(irrelevant) & (set(used) | set(refused)), "a key that is used cannot be irrelevant"
    assert all(len(reason) > 10 for reason in irrelevant.values())


@pytest.mark.parametrize(("name", "key"), cases(2))
def test_a_key_that_is_used_changes_its_attributes_and_no_others(name, key):
    config, table, used, _, _ = CASES[name]
    value, expected = used[key]
    before, after = attributes(table, config), attributes(table, config | {key: value})
    changed = {k: v for k, v in after.items() if k not in before or before[k] != v}
    assert changed == expected


@pytest.mark.parametrize(("name", "key"), cases(3))
def test_a_value_that_computes_something_else_is_refused_by_name(name, key):
    config, table, _, refused, _ = CASES[name]
    with pytest.raises(ValueError, match=r"^DIR/config\.json") as error:
        table.model_config(config | {key: refused[key]}, "DIR/config.json")
    message = str(error.value)
    assert key in message
    assert "\n" not in message
    value = refused[key]
    assert repr(value) in message or str(value) in message


@pytest.mark.parametrize("name", CASES)
def test_a_key_that_is_irrelevant_changes_no_attribute(name):
    config, table, _, _, irrelevant = CASES[name]
    before = attributes(table, config)
    for key in irrelevant:
        if key == "bos_token_id":  # irrelevant for a bare decoder, but an attribute of a whole InternVL model
            assert attributes(table, config | {key: 5}) == before
            continue
        for value in ("other", 7, True, {"a": 1}):
            assert attributes(table, config | {key: value}) == before, key


@pytest.mark.parametrize("name", CASES)
def test_every_attribute_of_a_model_comes_from_a_key_or_is_a_fact_of_the_architecture(name):
    """An attribute without a key would keep a default that some checkpoint contradicts."""
    facts = {"dtype", "remat", "attention", "parent", "name", "on_cpu", "dropout", "conv_init"}  # ours, or for training
    facts |= {"pre_norm", "final_norm", "layer_scale", "patch_bias"}  # fixed in InternViT's code
    facts |= {"frames", "pixels", "norm"}  # of towers and projectors of other families, which have their own tables
    config, table, used, _, _ = CASES[name]
    reached = {k for _, changed in used.values() for k in changed} | set(attributes(table, config))
    if table.KIND == "vlm":
        reached = {k.removeprefix("projector.") for k in reached if k.startswith("projector.")}
    module = {"vision_transformer": VisionTransformer, "decoder": Decoder, "iresnet": IResNet, "vlm": Projector}[
        table.KIND
    ]
    rope = {"rope_factor", "rope_original", "rope_low", "rope_high", "select_layer"}  # have their own tests below
    assert set(module.__dataclass_fields__) - reached - facts <= rope


# rotary positions, in both spellings


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 64}
ROPES = {
    "default": ({}, {"rope": "plain"}),
    "linear": ({"factor": 3.0}, {"rope": "linear", "rope_factor": 3.0}),
    "dynamic": ({"factor": 3.0}, {"rope": "dynamic", "rope_factor": 3.0}),
    "llama3": (LLAMA3, {"rope": "llama3", "rope_factor": 4.0, "rope_low": 1.5, "rope_high": 3.0, "rope_original": 64}),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_is_read_in_every_spelling(kind):
    settings, expected = ROPES[kind]
    bare = {k: v for k, v in LLAMA.items() if k not in ("rope_scaling", "rope_theta")}
    expected = expected | {"rope_theta": 300.0}
    for spelled in (
        {"rope_theta": 300.0, "rope_scaling": {"type": kind, **settings}},
        {"rope_theta": 300.0, "rope_scaling": {"rope_type": kind, **settings}},
        {"rope_theta": 300.0, "rope_scaling": {"rope_type": kind, "type": "other", **settings}},  # the newer name wins
        {"rope_parameters": {"rope_type": kind, "rope_theta": 300.0, **settings}},
        {"rope_parameters": {"rope_type": kind, "rope_theta": 300.0, "partial_rotary_factor": 1.0, **settings}},
        {  # one file for both: transformers 5 reads the theta within
            "rope_theta": 9.0,
            "rope_parameters": {"rope_type": kind, "rope_theta": 300.0, **settings},
            "rope_scaling": {"type": kind, **settings},
        },
    ):
        got = llama.model_config(bare | spelled, "config.json")
        assert {k: v for k, v in got.items() if k.startswith("rope")} == expected, spelled


BAD_ROPES: dict[str, tuple[dict[str, Any], str]] = {
    "yarn": ({"rope_type": "yarn", "factor": 4.0}, "rope scaling 'yarn' is not supported; known are"),
    "longrope": ({"type": "longrope", "short_factor": [1.0]}, "rope scaling 'longrope' is not supported"),
    "several axes": ({"type": "default", "mrope_section": [16, 24, 24]}, r"unknown keys \['mrope_section'\]"),
    "each kind of layer": ({"full_attention": {"rope_type": "default"}}, r"unknown keys \['full_attention'\]"),
    "part of a head": ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
    "yarn's keys": ({"type": "linear", "factor": 2.0, "beta_fast": 32}, r"unknown keys \['beta_fast'\]: .*=32"),
    "another first length": (
        {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
        r"unknown keys \['original_max_position_embeddings'\]",
    ),
    "no factor": ({"type": "dynamic"}, "rope scaling 'dynamic' has no 'factor'"),
    "no number": ({"type": "dynamic", "factor": "2"}, "factor='2' is not a number above 0"),
    "zero": ({"type": "linear", "factor": 0}, "factor=0 is not a number above 0"),
    "llama3 without a length": (
        {k: v for k, v in ({"type": "llama3"} | LLAMA3).items() if k != "original_max_position_embeddings"},
        "has no 'original_max_position_embeddings'",
    ),
    "llama3 the wrong way round": (
        {"type": "llama3"} | LLAMA3 | {"high_freq_factor": 1.5},
        "high_freq_factor=1.5 is not above low_freq_factor=1.5",
    ),
    "no object": ("linear", "is 'linear', not a JSON object"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", BAD_ROPES)
def test_rope_that_is_not_computed_is_refused(case):
    scaling, message = BAD_ROPES[case]
    with pytest.raises(ValueError, match=message):
        llama.model_config(LLAMA | {"rope_scaling": scaling}, "config.json")


def test_two_ropes_that_contradict_each_other_are_refused():
    both = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0},
    }
    with pytest.raises(ValueError, match=r"config.json: rope_scaling=.* contradicts rope_parameters="):
        llama.model_config(LLAMA | both, "config.json")


@pytest.mark.parametrize("theta", [None, 0, "10000", True])
def test_a_base_that_is_none_is_refused(theta):
    with pytest.raises(ValueError, match="rope_theta"):
        llama.model_config(QWEN2 | {"rope_theta": theta}, "config.json")
    if theta is None:  # LLaMA 1 and 2 leave it out
        assert llama.model_config(LLAMA | {"rope_theta": theta}, "config.json")["rope_theta"] == 10000.0


# impossible values are refused by name, before they cause a wrong shape


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True, [0], {}])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("InternLM2", ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")),
        ("LLaMA", ("head_dim", "intermediate_size", "max_position_embeddings")),
        ("InternViT", ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")),
        ("IResNet", ("num_features", "layers", "widths")),
    ],
)
def test_sizes_are_whole_numbers_above_zero(name, keys, value):
    config, table, *_ = CASES[name]
    for key in keys:
        with pytest.raises(ValueError, match=rf"^config\.json: {key}="):
            table.model_config(config | {key: value}, "config.json")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Qwen2", {"num_attention_heads": 13}, "num_attention_heads=13 does not fit hidden_size=896"),
        ("Qwen2", {"num_key_value_heads": 4}, "num_attention_heads=14 does not fit num_key_value_heads=4"),
        ("LLaMA", {"head_dim": 65}, "heads of even width, not 65"),
        ("LLaMA", {"mlp_bias": "yes"}, "mlp_bias='yes' is neither true nor false"),
        ("LLaMA", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 is neither true nor false"),
        ("LLaMA", {"rms_norm_eps": 0}, "rms_norm_eps=0 is not a number above 0"),
        ("InternViT", {"num_attention_heads": 15}, "hidden_size=1024 is not a multiple of num_attention_heads=15"),
        ("InternViT", {"image_size": 450}, "image_size=450 is not a multiple of patch_size=14"),
        ("InternViT", {"drop_path_rate": 1.0}, "drop_path_rate=1.0 is not a number from 0 to less than 1"),
        ("InternViT", {"qkv_bias": 1}, "qkv_bias=1 is neither true nor false"),
        ("InternVL", {"downsample_ratio": 0}, "downsample_ratio=0 is not a number above 0"),
        ("InternVL", {"downsample_ratio": 0.2}, "downsample_ratio=0.2 does not fit 32x32 patches"),
        ("InternVL", {"select_layer": -25}, r"\(vision_config\): select_layer=-25 is not a layer of a tower of 24"),
        ("InternVL", {"select_layer": 0}, "select_layer=0 is not a layer"),
        ("InternVL", {"vision_config": None}, "has no 'vision_config'"),
        ("InternVL", {"llm_config": "qwen2"}, r"\(llm_config\): the language configuration is 'qwen2'"),
        ("IResNet", {"layers": [3, 4, 14]}, r"layers=\[3, 4, 14\] must have as many stages as there are widths, 4"),
    ],
)
def test_values_that_do_not_go_together_are_refused(name, changes, message):
    config, table, *_ = CASES[name]
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        table.model_config(config | changes, "DIR/config.json")


# the whole of an InternVL model


def chat(llm=None, vision=None, **top) -> dict[str, Any]:
    return CHAT | {"llm_config": QWEN2 | (llm or {}), "vision_config": VISION | (vision or {})} | top


@pytest.mark.parametrize("decoder", ["InternLM2", "Qwen2", "LLaMA"])
def test_a_whole_has_its_parts_attributes(decoder):
    config, table, *_ = CASES[decoder]
    whole = internvl.model_config(
        chat(llm=None) | {"llm_config": config, "hidden_size": config["hidden_size"]}, "config.json"
    )
    assert whole["decoder"] == table.model_config(config, "config.json")
    assert whole["vision"] == internvit.model_config(VISION, "config.json")
    assert whole["projector"] == {"width": config["hidden_size"], "shuffle": 2, "ps_version": "v2"}
    assert whole["bos"] == config["bos_token_id"]


def test_unknown_keys_of_a_part_are_refused_with_the_part():
    for part in ("llm_config", "vision_config"):
        config = chat(**{{"llm_config": "llm", "vision_config": "vision"}[part]: {"no_such_key": 3}})
        told = rf"^DIR/config\.json \({part}\): unknown keys \['no_such_key'\]: .*no_such_key=3.*remove the key"
        with pytest.raises(ValueError, match=told):
            internvl.model_config(config, "DIR/config.json")
    tower = internvit.model_config(chat(llm={"no_such_key": 3}), "DIR/config.json")  # it has no decoder
    assert tower == internvit.model_config(VISION, "DIR/config.json")


def test_a_tower_alone_is_read_from_a_whole_as_within_it():
    for config in (chat(select_layer=-3), chat(vision={"norm_type": "rms_norm"})):
        tower = internvit.model_config(config, "config.json")
        assert tower == internvl.model_config(config, "config.json")["vision"]
    for key in ("no_such_key", "force_image_size", "use_backbone_lora"):
        with pytest.raises(ValueError, match=key):
            internvit.model_config(chat(**{key: 224}), "config.json")
    with pytest.raises(ValueError, match="architectures"):
        internvit.model_config(chat(vision={"architectures": ["CLIPVisionModel"]}), "config.json")


@pytest.mark.parametrize(
    ("top", "llm", "tied"),
    [(None, None, False), (None, True, True), (False, None, False), (False, True, False), (True, True, True)],
)
def test_a_wholes_own_word_on_tied_embeddings_decides(top, llm, tied):
    """InternVL 2.5 and later say false for every size, even if the decoder's own configuration says true."""
    config = chat(llm={"tie_word_embeddings": llm}, tie_word_embeddings=top)
    assert internvl.model_config(config, "config.json")["decoder"]["tied"] is tied


@pytest.mark.parametrize("bos", [None, -1, "1", 151674])
def test_a_first_token_that_is_none_is_refused(bos):
    with pytest.raises(ValueError, match="bos_token_id"):
        internvl.model_config(chat(llm={"bos_token_id": bos}), "config.json")
    assert internvl.model_config(chat(llm={"bos_token_id": 0}), "config.json")["bos"] == 0


@pytest.mark.parametrize("architectures", ["InternVLChatModel", [3], {"a": 1}, ["Qwen3ForCausalLM"], []])
def test_architectures_that_are_not_read(tmp_path, architectures):
    (tmp_path / "config.json").write_text(json.dumps(CHAT | {"architectures": architectures}))
    with pytest.raises(ValueError, match=r"config\.json: .*architectures"):
        open_checkpoint(tmp_path)


def chat_hf(text=None, vision=None, **top) -> dict[str, Any]:
    text, vision = CHAT_HF["text_config"] | (text or {}), VISION_HF | (vision or {})
    return CHAT_HF | {"text_config": text, "vision_config": vision} | top


def test_both_layouts_of_one_model_have_the_same_attributes():
    hf = internvl_hf.model_config(chat_hf(vision={"drop_path_rate": 0.1}), "config.json")
    assert hf == internvl.model_config(CHAT, "config.json")
    assert internvit_hf.model_config(chat_hf(vision={"drop_path_rate": 0.1}), "config.json") == hf["vision"]
    for text, reader in ((QWEN2_5, QWEN2_5), (LLAMA | {"architectures": None}, LLAMA)):  # model_type decides
        got = internvl_hf.model_config(CHAT_HF | {"text_config": text}, "config.json")
        assert got["decoder"] == llama.model_config(reader, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"model_type": "qwen3"}}, r"\(text_config\): model_type='qwen3' is not supported; known are"),
        ({"text": {"model_type": None}}, r"\(text_config\): the language configuration has no 'model_type'"),
        ({"text": {"model_type": "llama"}}, r"\(text_config\): architectures=\['Qwen2ForCausalLM'\] is not"),
        ({"text": {"bos_token_id": None}}, r"\(text_config\): .* has no 'bos_token_id'"),
        ({"text": {"no_such_key": 3}}, r"\(text_config\): unknown keys \['no_such_key'\]"),
        ({"vision": {"no_such_key": 3}}, r"\(vision_config\): unknown keys \['no_such_key'\]"),
        ({"vision": {"image_size": [448, 224]}}, r"image_size=\[448, 224\] is not supported; only squares"),
        ({"vision": {"image_size": [0, 0]}}, r"\(vision_config\): image_size=0 is not a whole number"),
        ({"vision": {"use_qk_norm": True, "layer_norm_eps": 1e-5}}, "layer_norm_eps=1e-05 with use_qk_norm"),
        ({"vision_feature_layer": -25}, r"\(vision_config\): vision_feature_layer=-25 is not a layer"),
        ({"downsample_ratio": 0.2}, "downsample_ratio=0.2 does not fit 32x32 patches"),
        ({"image_seq_length": 64}, "image_seq_length=64 is not the 256 visual tokens of a tile"),
    ],
)
def test_values_of_the_hf_layout_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=rf"^DIR/config\.json.*{message}"):
        internvl_hf.model_config(chat_hf(**changes), "DIR/config.json")


@pytest.mark.parametrize(
    ("top", "text", "head", "tied"),
    [
        *[(top, text, True, False) for top in (None, True, False) for text in (None, True, False)],
        *[(None, None, False, True), (True, False, False, True), (None, True, False, True)],
        *[(False, True, False, False), (None, False, False, False)],  # the missing head is an error then
    ],
)
def test_the_files_head_decides_whether_the_hf_layout_ties_it(top, text, head, tied):
    config = chat_hf(text={"tie_word_embeddings": text}, tie_word_embeddings=top)
    for key in ("language_model.lm_head.weight", "lm_head.weight", "params/decoder/head"):
        attributes = internvl_hf.model_config(config, "config.json")
        assert internvl_hf.settle(attributes, config, {key} if head else {"x"})["decoder"]["tied"] is tied


@pytest.mark.parametrize("file", ["internvl2_2b", "internvl_tiny", "internvl_tiny_qknorm", "internvl3_tiny/remote"])
def test_golden_configurations_are_read(file):
    config = json.loads((GOLDEN / file / "config.json").read_text())
    internvit.model_config(config, file)
    if "llm_config" in config:
        internvl.model_config(config, file)


# adapter_config.json


ADAPTER = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "OpenGVLab/InternVL3-1B", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 32, "lora_bias": False,
    "lora_dropout": 0.05, "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core",
    "modules_to_save": None, "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2",
    "qalora_group_size": 16, "r": 16, "rank_pattern": {}, "revision": None, "target_modules": ["fc1"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None,
    "use_dora": False, "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip
ADAPTER_REFUSED: dict[str, Any] = {
    "peft_type": "LOHA", "bias": "lora_only", "use_dora": True, "use_rslora": "yes", "use_qalora": True,
    "use_bdlora": {"nblocks": 2}, "lora_bias": True, "modules_to_save": ["lm_head"], "trainable_token_indices": [1],
    "layer_replication": [[0, 2]], "target_parameters": ["experts.weight"], "alora_invocation_tokens": [5],
    "megatron_config": {"a": 1}, "arrow_config": {"a": 1}, "kasa_config": {"a": 1}, "velora_config": {"a": 1},
    "monteclora_config": {"a": 1}, "ensure_weight_tying": True, "init_lora_weights": "pissa_niter_16",
    "no_such_key": True, "rank_pattern": {"fc1": 0}, "alpha_pattern": [1], "r": 0, "lora_alpha": -1,
    "target_modules": 3, "exclude_modules": [1], "layers_to_transform": [-1], "layers_pattern": 5,
}  # fmt: skip
ADAPTER_REFUSED_VALUES = [
    *(("init_lora_weights", init) for init in ("pissa", "PiSSA", "olora", "corda", "loftq", "lora_ga", "mica", "x")),
    *(("peft_type", kind) for kind in ("ADALORA", "LOKR", "VERA", "IA3", "XLORA", "lora")),
    *(("rank_pattern", {regex: 8}) for regex in ("*fc1", "(fc1", "a{2,1}")),
    *(("target_modules", regex) for regex in ("*fc1", "[")),
    *(("r", value) for value in (True, "16", 8.0)),
    *(("lora_alpha", value) for value in ("32", 0, True)),
    *(("alpha_pattern", {"fc1": value}) for value in (True, "8", float("inf"))),
]
ADAPTER_USED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
ADAPTER_USED |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}


@pytest.fixture
def scale(tmp_path):
    """Return a function: the scale of rank-16 adapters with some changes in adapter_config.json."""

    def of(**changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER | changes))
        return adapter_config.read_adapter_config(tmp_path / "adapter_config.json").scale("m.fc1", 16)

    return of


def test_adapters_keys_are_used_irrelevant_or_refused(scale):
    assert not set(ADAPTER) - ADAPTER_USED - set(ADAPTER_REFUSED) - set(adapter_config.IRRELEVANT)
    assert scale() == 2.0
    assert scale(lora_alpha=8) == 0.5
    assert scale(r=8, rank_pattern={"fc1": 16}) == 2.0
    assert scale(alpha_pattern={"fc1": 64}) == 4.0
    for key in adapter_config.IRRELEVANT:
        assert {scale(**{key: value}) for value in ("x", 3, True, {"a": 1})} == {2.0}, key
    for init in ("gaussian", False, "eva"):
        assert scale(init_lora_weights=init) == 2.0
    assert scale(use_rslora=True) == 8.0, "alpha / sqrt(rank)"
    assert scale(use_rslora=True, alpha_pattern={"fc1": 64}) == 16.0
    unset = {key: value for key, value in ADAPTER.items() if key in ("r", "lora_alpha")}
    assert scale(**(dict.fromkeys(ADAPTER) | unset)) == 2.0, "null means that a key is not set"


def test_every_key_that_peft_writes_is_known():
    config = pytest.importorskip("peft", reason="needs tests/requirements-torch.txt").LoraConfig(target_modules=["fc1"])
    written = set(config.to_dict()) - {"runtime_config"}
    known = ADAPTER_USED | set(adapter_config.IRRELEVANT) | set(adapter_config.REFUSED)
    assert written <= known | {"peft_type", "bias", "init_lora_weights"}


@pytest.mark.parametrize(("key", "value"), ADAPTER_REFUSED_VALUES)
def test_values_of_adapter_config_that_are_refused_by_name(scale, tmp_path, key, value):
    with pytest.raises(ValueError, match=key) as error:
        scale(**{key: value})
    assert str(error.value).startswith(str(tmp_path / "adapter_config.json"))
    assert "\n" not in str(error.value)


TARGETS = [  # changes in adapter_config.json, and which of the modules below PEFT puts adapters on
    ({"target_modules": ["fc1", "fc2"]}, {"m.layers.0.fc1", "m.layers.1.fc1", "m.layers.1.fc2"}),
    ({"target_modules": ["layers.1.fc1"]}, {"m.layers.1.fc1"}),
    ({"target_modules": ["c1"]}, set()),
    ({"target_modules": r".*\.1\.fc[12]"}, {"m.layers.1.fc1", "m.layers.1.fc2"}),
    ({"target_modules": r"fc1"}, set()),
    ({"target_modules": ["fc1", "fc2"], "exclude_modules": ["fc2"]}, {"m.layers.0.fc1", "m.layers.1.fc1"}),
    ({"target_modules": ["fc1", "fc2"], "exclude_modules": r".*\.1\..*"}, {"m.layers.0.fc1"}),
    ({"target_modules": ["fc1", "fc2"], "layers_to_transform": [0]}, {"m.layers.0.fc1"}),
    ({"target_modules": ["fc1"], "layers_to_transform": 1, "layers_pattern": "layers"}, {"m.layers.1.fc1"}),
    ({"target_modules": ["fc1"], "layers_to_transform": [1], "layers_pattern": ["blocks"]}, set()),
    ({"target_modules": ["m.layers.0.fc1", "fc2"], "layers_to_transform": [1]}, {"m.layers.0.fc1", "m.layers.1.fc2"}),
    ({"target_modules": None}, {"m.layers.0.fc1", "m.layers.1.fc1", "m.layers.1.fc2", "m.head"}),
]


@pytest.mark.parametrize(("changes", "expected"), TARGETS)
def test_which_modules_are_targets(tmp_path, changes, expected):
    """What PEFT's own function says, where it is installed, is the same."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER | changes))
    config = adapter_config.read_adapter_config(tmp_path / "adapter_config.json")
    modules = ("m.layers.0.fc1", "m.layers.1.fc1", "m.layers.1.fc2", "m.head")
    assert {m for m in modules if config.is_target(m)} == expected
    with contextlib.suppress(ImportError):
        import peft
        from peft.tuners.tuners_utils import check_target_module_exists

        if changes["target_modules"] is not None:
            theirs = peft.LoraConfig(**{k: v for k, v in changes.items() if v is not None})
            found = {m: check_target_module_exists(theirs, m) for m in modules}
            assert {m for m, value in found.items() if value is True or isinstance(value, re.Match)} == expected


@pytest.mark.parametrize("init", ["pissa", "PiSSA", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_adapters_that_were_subtracted_from_the_base_are_refused(scale, init):
    with pytest.raises(ValueError, match=rf"init_lora_weights='{init}' is not supported: it (subtracts|quantises)"):
        scale(init_lora_weights=init)


@pytest.mark.parametrize("key", ADAPTER_REFUSED)
def test_adapters_that_are_not_plain_lora_are_refused_by_name(scale, tmp_path, key):
    with pytest.raises(ValueError, match=key) as error:
        scale(**{key: ADAPTER_REFUSED[key]})
    assert str(error.value).startswith(str(tmp_path / "adapter_config.json"))
    assert str(ADAPTER_REFUSED[key]) in str(error.value)


# the other files of a checkpoint, and the hash of its weights


COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
LEFT = ("modeling_internvl.py", "pytorch_model.bin", "training_args.bin", "README.md", "optimizer.pt", "model.msgpack")


def test_a_checkpoints_other_files_are_downloaded_and_copied_and_code_is_not():
    def wanted(name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in hub.WANTED)

    for name in COPIED:
        assert write.COMPANIONS.fullmatch(name), name
        assert wanted(name), name
    for name in LEFT:
        assert not write.COMPANIONS.fullmatch(name), name
        assert not wanted(name), name
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        assert wanted(name), name
        assert not write.COMPANIONS.fullmatch(name), f"{name} is written anew"


def test_the_hash_of_weights_is_of_values_types_and_places(tmp_path):
    """The hash covers bits, dtypes and keys. A copy with another order of keys has the same hash."""
    shapes = {name: leaf.shape for name, leaf in open_checkpoint(GOLDEN / "internvl_tiny_qknorm").params.items()}
    assert shapes["params/blocks/ls1"] == shapes["params/blocks/ls2"]
    stored = load_file(GOLDEN / "internvl_tiny_qknorm/model.safetensors")
    config = (GOLDEN / "internvl_tiny_qknorm/config.json").read_text()

    def digest(name, tensors):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        save_file(tensors, tmp_path / name / "model.safetensors")
        return hashes(open_checkpoint(tmp_path / name))["vision"]

    one = next(key for key in stored if key.endswith("layers.0.ls1"))
    swap = {"ls1": "ls2", "ls2": "ls1"}
    same = digest("same", dict(reversed(stored.items())))
    assert same == hashes(open_checkpoint(GOLDEN / "internvl_tiny_qknorm"))["vision"]
    half = {key: np.zeros(value.shape, np.float16) for key, value in stored.items()}
    others = [
        digest("swapped", {key: stored[key[:-3] + swap.get(key[-3:], key[-3:])] for key in stored}),
        digest("one bit", stored | {one: np.nextafter(stored[one], np.float32(9))}),
        digest("float16", half),
        digest("bfloat16", {key: value.view(ml_dtypes.bfloat16) for key, value in half.items()}),
    ]
    assert len({same, *others}) == 5


# one file on disk, read through the public function


def test_an_unknown_key_is_refused_when_a_directory_is_opened(tmp_path):
    config = json.loads((GOLDEN / "internvl_tiny/config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to((GOLDEN / "internvl_tiny/model.safetensors").resolve())
    config["llm_config"]["sliding_window"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(config))
    location = rf"^{tmp_path}/config\.json \(llm_config\)"
    told = rf"{location}: unknown keys \['sliding_window'\]: the effect of sliding_window=4096"
    with pytest.raises(ValueError, match=told):
        open_checkpoint(tmp_path, "vlm")
    assert open_checkpoint(tmp_path).kind == "vision_transformer"
