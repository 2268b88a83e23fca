"""Check with seeded faults that the tests detect wrong code.

    python tests/mutations.py [--only=NAME] [--write]

Each fault below is put into a copy of the working tree, and the tests that should detect it run there. At least one of
them must fail. A skip, a collection error or the absence of tests does not count as a detection. --write records in
tests/MUTATIONS.md which test caught which fault. The exit code is 0; 1 if a fault is not caught; 2 if the list no
longer matches the code, or if the tests fail without a fault.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
VIT, IRESNET = "tests/parity/test_vision_transformer.py::", "tests/parity/test_iresnet.py::"
TOKENS, TWIN = VIT + "test_golden_tokens_and_pooling[none]", IRESNET + "test_torch_twin_in_float64[tiny]"
FOLDS, TRAIN, LORA = "tests/test_folds.py::", "tests/test_train.py::", "tests/test_lora.py::"
VERIFICATION, PIPELINE, PAIRS = "tests/test_verification.py::", "tests/test_pipeline.py::", "tests/test_pairs.py::"
PROMPTS, ANSWER, CACHE = "tests/test_prompts.py::", "tests/test_pair_answer.py::", "tests/test_accumulation.py::"
OF_ADAPTED = TRAIN + "test_the_loss_is_of_the_adapted_model_at_the_configs_temperature"
PEFT, CONVERT, EXPORT = "tests/parity/test_peft.py::", "tests/test_convert.py::", "tests/test_export.py::"
GRADIENTS, BIN = "tests/test_gradients.py::", "tests/test_insightface_bin.py::"
VLM, DECODER = "tests/parity/test_vlm.py::", "tests/parity/test_decoder.py::"
CHAT_MODEL, BENCH_TASK = "tests/test_chat_model.py::", "tests/test_facexbench_task.py::"
WHAT_TRAINS = TRAIN + "test_only_what_trains_has_gradients_and_optimizer_state"


class Fault(NamedTuple):
    name: str
    breaks: str  # the effect of the fault
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: tuple[str, ...]  # fast tests that should detect it


FAULTS = (
    # ---- conversations: the Python API, the command and FaceXBench
    Fault(
        "letter_without_space",
        "the probability of a letter leaves out the letter with a space before it",
        "fvjax/tasks/conversation_evaluation.py",
        'for text in (letter, f" {letter}")',
        "for text in (letter,)",
        (BENCH_TASK + "test_a_letter_counts_with_and_without_a_space",),
    ),
    Fault(
        "context_id",
        "visual tokens are looked for at the tag before them",
        "fvjax/chat_model.py",
        "return self.tokenizer.added[template.image[1]]",
        "return self.tokenizer.added[template.image[0]]",
        (CHAT_MODEL + "test_logits_are_of_every_token",),
    ),
    Fault(
        "generation_one_short",
        "a stream of tokens ends one before the limit",
        "fvjax/models/generation.py",
        "np.asarray(ids)[:, : max_tokens - step]",
        "np.asarray(ids)[:, : max_tokens - step - 1]",
        (CHAT_MODEL + "test_greedy_ids_are_the_golden_ones[8]",),
    ),
    Fault(
        "generation_cache_full",
        "the cache of a long answer grows too late, so that tokens are overwritten",
        "fvjax/models/generation.py",
        "if needed > capacity:",
        "if needed > 2 * capacity:",
        (CHAT_MODEL + "test_a_stream_that_outgrows_its_cache_is_what_generate_makes",),
    ),
    Fault(
        "end_token_said",
        "an answer has the text of the token that ends it",
        "fvjax/chat_model.py",
        "fresh[:end]",
        "fresh[: end + 1]",
        (CHAT_MODEL + "test_characters_of_several_bytes_are_never_split[8]",),
    ),
    Fault(
        "stream_drops_a_piece",
        "a stream leaves out the first character of every piece",
        "fvjax/chat_model.py",
        "yield text[len(said) :]",
        "yield text[len(said) + 1 :]",
        (CHAT_MODEL + "test_characters_of_several_bytes_are_never_split[1]",),
    ),
    Fault(
        "choose_least_probable",
        "the least probable option is chosen",
        "fvjax/chat_model.py",
        "return int(probabilities.argmax()), probabilities",
        "return int(probabilities.argmin()), probabilities",
        (CHAT_MODEL + "test_options_of_one_token_are_compared_by_their_logits",),
    ),
    Fault(
        "cut_not_counted",
        "no answer counts as cut by the limit of tokens",
        "fvjax/tasks/dialogue.py",
        "row[: count - ended].tolist()), not ended)",
        "row[: count - ended].tolist()), False)",
        (CHAT_MODEL + "test_an_answer_that_ends_is_not_cut",),
    ),
    Fault(
        "answers_of_another_model",
        "a folder's answers are continued with another model or other settings",
        "fvjax/chat.py",
        'asked = {"question": text, **settings, **about}',
        'asked = {"question": text, **settings}',
        ("tests/test_chat_command.py::test_answers_to_another_question_are_not_mixed[Hair?-flags2-system]",),
    ),
    # ---- models
    Fault(
        "batchnorm_eps",
        "batch norm adds 1e-6 to the variance instead of 1e-5",
        "fvjax/models/layers.py",
        "eps: float = 1e-5",
        "eps: float = 1e-6",
        (TWIN,),
    ),
    Fault(
        "layernorm_eps",
        "the layer norm adds 1e-5 to the variance instead of 1e-6",
        "fvjax/models/vision_transformer.py",
        "norm = partial(NORM[self.norm], self.norm_eps, self.dtype)",
        "norm = partial(NORM[self.norm], 1e-5, self.dtype)",
        (TOKENS,),
    ),
    Fault(
        "default_eps",
        "a tower that is built without a checkpoint uses 1e-5 as layer norm epsilon instead of InternViT's 1e-6",
        "fvjax/models/vision_transformer.py",
        "norm_eps: float = 1e-6",
        "norm_eps: float = 1e-5",
        (VIT + "test_the_preset_is_internvl2_2bs_tower",),
    ),
    Fault(
        "biased_variance",
        "batch norm stores the biased running variance, as flax does, instead of torch's unbiased one",
        "fvjax/models/layers.py",
        " * (count / (count - 1))",
        "",
        (TWIN,),
    ),
    Fault(
        "tanh_gelu",
        "GELU is computed by its tanh approximation instead of exactly",
        "fvjax/models/vision_transformer.py",
        '"gelu": partial(jax.nn.gelu, approximate=False)',
        '"gelu": partial(jax.nn.gelu, approximate=True)',
        (TOKENS,),
    ),
    Fault(
        "positions_shifted",
        "the position embeddings are shifted by one token",
        "fvjax/models/vision_transformer.py",
        "resize_positions(pos, (grid, grid), (rows, cols)).astype",
        "jnp.roll(resize_positions(pos, (grid, grid), (rows, cols)), 1, 0).astype",
        (TOKENS,),
    ),
    Fault(
        "qkv_order",
        "the fused qkv is read as (head, 3, dim) instead of (3, head, dim)",
        "fvjax/models/vision_transformer.py",
        "q, k, v = jnp.split(qkv, 3, axis=-1)",
        "q, k, v = jnp.moveaxis(qkv.reshape(n, tokens, self.heads, 3, -1), 3, 0).reshape(3, n, tokens, width)",
        (TOKENS,),
    ),
    Fault(
        "cls_in_the_mean",
        "mean pooling includes the CLS token",
        "fvjax/models/vision_transformer.py",
        "tokens[:, 1:].astype",
        "tokens.astype",
        (TOKENS,),
    ),
    Fault(
        "drop_path_unscaled",
        "drop-path does not scale up the branches that it keeps",
        "fvjax/models/vision_transformer.py",
        "y / (1 - rate).astype(self.dtype)",
        "y",
        (LORA + "test_drop_path_rates_and_scaling",),
    ),
    Fault(
        "dropout_by_row",
        "dropout depends on the row in the batch instead of on the image",
        "fvjax/models/layers.py",
        "(fold_in(keys, DROPOUT))",
        "(jax.random.split(jax.random.key(0), x.shape[0]))",
        (IRESNET + "test_dropout_follows_the_image_not_its_row",),
    ),
    Fault(
        "stem_shifted",
        "the two halves of the stem's folded kernel are swapped",
        "fvjax/models/cpu_conv.py",
        "(1 + i, 2 - i)",
        "(2 - i, 1 + i)",
        ("tests/test_cpu_conv.py::test_values_and_gradients",),
    ),
    Fault(
        "cubic_input",
        "faces are enlarged to 448 pixels by bicubic instead of bilinear interpolation",
        "fvjax/models/preprocess.py",
        '"bilinear", antialias=False',
        '"cubic", antialias=False',
        (VIT + "test_preprocessing",),
    ),
    Fault(
        "flip_upside_down",
        "the flip augmentation swaps top and bottom instead of left and right",
        "fvjax/models/preprocess.py",
        "images[:, :, ::-1]",
        "images[:, ::-1]",
        (TRAIN + "test_half_of_the_faces_are_mirrored_left_to_right",),
    ),
    Fault(
        "never_in_training_mode",
        "training applies the network in evaluation mode, without batch statistics and dropout",
        "fvjax/models/encoder.py",
        "train=train, keys=keys, mutable=mutable",
        "train=False, keys=keys, mutable=mutable",
        (WHAT_TRAINS,),
    ),
    # ---- decoder, projector, VLM
    Fault(
        "pixel_shuffle_v1",
        "pixel shuffle uses the transposed order of v1 although the checkpoint says v2",
        "fvjax/models/projector.py",
        '"v2": (0, 1, 3, 2, 4, 5)',
        '"v2": (0, 3, 1, 2, 4, 5)',
        (VLM + "test_visual_tokens",),
    ),
    Fault(
        "rope_theta",
        "rotary positions use base 10,000 instead of the checkpoint's rope_theta",
        "weights_convert/llama.py",
        'return {"rope": kind, "rope_theta": float(theta)}',
        'return {"rope": kind, "rope_theta": 10000.0}',
        (VLM + "test_pools_of_given_visual_tokens",),
    ),
    Fault(
        "gate_and_up_swapped",
        "InternLM2's w1 is read as the up projection and w3 as the gate",
        "weights_convert/internlm2.py",
        """        Rule("params/blocks/mlp/gate/kernel", layer + "feed_forward.w1.weight", LINEAR),
        Rule("params/blocks/mlp/up/kernel", layer + "feed_forward.w3.weight", LINEAR),""",
        """        Rule("params/blocks/mlp/gate/kernel", layer + "feed_forward.w3.weight", LINEAR),
        Rule("params/blocks/mlp/up/kernel", layer + "feed_forward.w1.weight", LINEAR),""",
        (VLM + "test_pools_of_given_visual_tokens",),
    ),
    Fault(
        "parts_share_an_a",
        "when q, k and v have an A matrix each, the first one's is written for all three",
        "weights_convert/peft.py",
        "(a[0] if shared else np.concatenate(a, 1)).T)",
        "np.concatenate([a[0]] * (1 if shared else len(a)), 1).T)",
        (PEFT + "test_heads_of_their_own_in_one_matrix[qkv]",),
    ),
    Fault(
        "alpha_of_the_wider_adapter",
        "an adapter with three times the rank is written with an unscaled alpha, so PEFT multiplies it by a third "
        "of the scale",
        "weights_convert/peft.py",
        "{key: alpha * r / rank for key, r in other.items()}",
        "dict.fromkeys(other, alpha)",
        (CONVERT + "test_ranks_and_alphas_by_module",),
    ),
    Fault(
        "any_base_will_do",
        "adapters are accepted for base weights other than those on which they were trained",
        "weights_convert/peft.py",
        "    if not recorded:\n",
        "    if recorded:\n",
        (CONVERT + "test_adapters_say_which_base_they_belong_to",),
    ),
    Fault(
        "merge_loses_negative_zeros",
        "merging adapters whose product is zero changes -0.0 in the base to 0.0",
        "fvjax/models/lora.py",
        "jnp.where(delta == 0, kernel, total)",
        "total",
        (EXPORT + "test_zero_adapters_change_no_bit[original-vlm]",),
    ),
    Fault(
        "merge_without_the_scale",
        "merging does not multiply the adapters by alpha / rank",
        "fvjax/export.py",
        "scale = config.lora.alpha / config.lora.rank if adapters else 0.0",
        "scale = 1.0",
        (EXPORT + "test_merged_weights_of_a_run[adapted]",),
    ),
    Fault(
        "projector_left_behind",
        "a merged export contains the base's weights for parts that the run trained in full",
        "fvjax/export.py",
        "changes | {name: partial(take, name) for name in whole}",
        "changes",
        (EXPORT + "test_merged_weights_of_a_run[both]",),
    ),
    Fault(
        "two_shards_in_memory",
        "conversion keeps a shard in memory while it reads the next one",
        "weights_convert/write.py",
        "total = sum(_write_shard(temporary / file, shard) for file, shard in shards.items())",
        "total = sum(_write_shard(temporary / file, kept := {k: (lambda v=v(): v) for k, v in shard.items()}) "
        "for file, shard in shards.items())",
        (CONVERT + "test_one_shard_is_in_memory_at_a_time",),
    ),
    Fault(
        "downloads_pickles",
        "a download fetches every file of the repository, including pickles",
        "weights_convert/hub.py",
        "allow_patterns=WANTED, ",
        "",
        ("tests/test_hub.py::test_a_repository_at_its_current_commit_and_again_offline",),
    ),
    Fault(
        "prompts_of_any_length",
        "a prompt longer than the decoder's maximum length is not refused when the encoder is built",
        "fvjax/models/encoder.py",
        "if tokens > net.decoder.max_tokens:",
        "if tokens > 2 * net.decoder.max_tokens:",
        ("tests/test_bad_input.py::test_a_prompt_longer_than_the_positions",),
    ),
    Fault(
        "before_the_final_norm",
        "embeddings are pooled from the decoder's states before the final norm",
        "fvjax/models/decoder.py",
        "return self.final_norm(self._run(x, None, positions, last)[0])",
        "return (self.final_norm if self.is_initializing() else lambda y: y)(self._run(x, None, positions, last)[0])",
        (VLM + "test_pools_of_given_visual_tokens",),
    ),
    Fault(
        "kv_groups",
        "wqkv's rows are read as (queries and k, v; key head) instead of (key head; queries and k, v)",
        "weights_convert/internlm2.py",
        "        return x.reshape(*dims, *x.shape[1:])[:, part]",
        "        return x.reshape(dims[1], dims[0], dims[2], *x.shape[1:]).swapaxes(0, 1)[:, part]",
        (VLM + "test_pools_of_given_visual_tokens", "tests/test_convert.py::test_bare_internlm2_and_its_fused_heads"),
    ),
    Fault(
        "sees_the_next_token",
        "the causal mask is off by one, so every token attends to the one after it",
        "fvjax/models/layers.py",
        "jnp.tri(tokens, keys, keys - tokens, dtype=bool), logits",
        "jnp.tri(tokens, keys, keys - tokens + 1, dtype=bool), logits",
        (DECODER + "test_causal", VLM + "test_pools_of_given_visual_tokens"),
    ),
    Fault(
        "cache_sees_the_next_place",
        "with a cache, a token attends to one position beyond its own",
        "fvjax/models/decoder.py",
        "<= queries.index[:, :, None]",
        "<= queries.index[:, :, None] + 1",
        (DECODER + "test_cache_step_by_step",),
    ),
    Fault(
        "prefix_of_another_image",
        "a pair continues from the cached prefix of another image",
        "fvjax/models/vlm.py",
        "self.decoder.extend(x, prefix, last=True)",
        "self.decoder.extend(x, prefix._replace(k=jnp.roll(prefix.k, 1, 1), v=jnp.roll(prefix.v, 1, 1)), last=True)",
        (VLM + "test_pairs_on_a_shared_prefix",),
    ),
    Fault(
        "lora_scale",
        "adapters are scaled by 2 alpha / rank instead of alpha / rank",
        "fvjax/models/lora.py",
        "leaf * scale if",
        "leaf * 2 * scale if",
        (LORA + "test_scale_and_merge",),
    ),
    Fault(
        "lora_scale_in_training",
        "the training step scales adapters by 2 alpha / rank instead of alpha / rank",
        "fvjax/training/model.py",
        "self.adapters.alpha / self.adapters.rank",
        "2 * self.adapters.alpha / self.adapters.rank",
        (OF_ADAPTED,),
    ),
    Fault(
        "lora_b_not_zero",
        "B is not initialised to zero, so the adapted model does not start as the base model",
        "fvjax/models/lora.py",
        "jnp.zeros((*stack, rank, outputs)",
        "jnp.ones((*stack, rank, outputs)",
        (LORA + "test_init",),
    ),
    # ---- training step
    Fault(
        "frozen_leaves_train",
        "parameters of the frozen group get gradients and updates",
        "fvjax/training/optimizer.py",
        "for n, g in groups.items() if g != FROZEN}",
        "for n, g in groups.items()}",
        (WHAT_TRAINS,),
    ),
    Fault(
        "base_trains",
        "the config vit_lora trains the whole base together with the adapters",
        "configs/vit_lora.py",
        '(".*", "frozen")',
        '(".*", "adapter")',
        ("tests/test_configs.py::test_config[vit_lora]",),
    ),
    Fault(
        "statistics_lost",
        "the training step discards the new running statistics",
        "fvjax/training/step.py",
        "TrainState(opt, stats, state.step + 1",
        "TrainState(opt, state.stats, state.step + 1",
        (WHAT_TRAINS,),
    ),
    Fault(
        "keys_by_row",
        "flip and drop-path depend on the row in the batch instead of on the pair",
        "fvjax/tasks/faces.py",
        '(count * batch["index"][:, None] + jnp.arange(count)).reshape(-1)',
        'jnp.arange(count * len(batch["index"]))',
        (TRAIN + "test_randomness_follows_the_pair_not_its_row",),
    ),
    Fault(
        "partners_apart_in_the_step",
        "the loss receives all first images and then all second ones, instead of pair by pair",
        "fvjax/tasks/verification.py",
        "images.reshape(-1, *images.shape[2:]), train=True",
        "images.swapaxes(0, 1).reshape(-1, *images.shape[2:]), train=True",
        (OF_ADAPTED,),
    ),
    Fault(
        "wrong_diagonal",
        "InfoNCE masks the similarity to a neighbouring image instead of each image's similarity to itself",
        "fvjax/losses/contrastive.py",
        "own[:, None] == jnp.arange(n)",
        "own[:, None] == jnp.arange(n) + 1",
        (TRAIN + "test_loss_against_a_loop",),
    ),
    Fault(
        "temperature_of_negatives",
        "InfoNCE does not divide the similarities by the temperature",
        "fvjax/losses/contrastive.py",
        "precision=jax.lax.Precision.HIGHEST) / temperature",
        "precision=jax.lax.Precision.HIGHEST)",
        (TRAIN + "test_loss_against_a_loop",),
    ),
    Fault(
        "temperature_of_the_config",
        "the training loss ignores config.loss.temperature and uses 0.07",
        "fvjax/tasks/verification.py",
        "temperature=self.loss.temperature",
        "temperature=0.07",
        (OF_ADAPTED,),
    ),
    Fault(
        "decay_after_momentum",
        "weight decay is added after the momentum instead of before it",
        "fvjax/training/optimizer.py",
        "optax.chain(decay, optax.trace(config.momentum), rate)",
        "optax.chain(optax.trace(config.momentum), decay, rate)",
        (TRAIN + "test_sgd_clips_then_decays_then_gathers_momentum",),
    ),
    Fault(
        "clipped_last",
        "clipping applies to the update instead of the gradient",
        "fvjax/training/optimizer.py",
        "optax.chain(optax.clip_by_global_norm(config.clip), optax.partition(per_group, labels))",
        "optax.chain(optax.partition(per_group, labels), optax.clip_by_global_norm(config.clip))",
        (TRAIN + "test_sgd_clips_then_decays_then_gathers_momentum",),
    ),
    Fault(
        "weights_not_read",
        "trained parameters start from random values although the config has an init_from",
        "fvjax/training/model.py",
        'return {part: self._read_pretrained(tree, "float32") for part, tree in initial.items()}',
        'return {**initial, "stats": self._read_pretrained(initial["stats"], "float32")}',
        (TRAIN + "test_what_trains_starts_from_init_from",),
    ),
    Fault(
        "statistics_not_read",
        "running statistics start at 0 and 1 although the config has an init_from",
        "fvjax/training/model.py",
        'return {part: self._read_pretrained(tree, "float32") for part, tree in initial.items()}',
        'return {**initial, "trainable": self._read_pretrained(initial["trainable"], "float32")}',
        (TRAIN + "test_what_trains_starts_from_init_from",),
    ),
    # ---- data and resuming
    Fault(
        "bgr",
        "JPEGs are decoded as BGR",
        "fvjax/data/images.py",
        'simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out)',
        'simplejpeg.decode_jpeg(jpeg, colorspace="BGR", buffer=out)',
        ("tests/test_images.py::test_decode_is_rgb_not_bgr",),
    ),
    Fault(
        "partners_apart_in_the_plan",
        "the two images of a genuine pair show two identities",
        "fvjax/data/pairs.py",
        "order[at], order[at + 1]",
        "order[at], order[np.roll(at, 1) + 1]",
        (PAIRS + "test_every_epoch",),
    ),
    Fault(
        "identity_twice_in_a_batch",
        "an identity may occur twice in a batch and become its own negative",
        "fvjax/data/pairs.py",
        "self._round = position[self._starts] // 2",
        "self._round = 0 * position[self._starts]",
        (PAIRS + "test_every_epoch",),
    ),
    # ---- pairwise answers, prompts, dead adapters, accumulation
    Fault(
        "tournament_repeats",
        "the round-robin schedule repeats some pairs before all pairs have been drawn",
        "fvjax/data/pairs.py",
        "(day - table - 1) % around",
        "(day - table - 2) % around",
        (PAIRS + "test_every_epoch_of_genuine_and_impostor_pairs",),
    ),
    Fault(
        "impostors_of_one_identity",
        "both images of an impostor pair show the same identity",
        "fvjax/data/pairs.py",
        "images[starts[a] + i], images[starts[b] + j]",
        "images[starts[a] + i], images[starts[a] + j]",
        (PAIRS + "test_every_epoch_of_genuine_and_impostor_pairs",),
    ),
    Fault(
        "kinds_swapped",
        "genuine pairs are labelled 0 and impostor pairs 1",
        "fvjax/data/pairs.py",
        "np.repeat([1, 0]",
        "np.repeat([0, 1]",
        (PAIRS + "test_every_epoch_of_genuine_and_impostor_pairs",),
    ),
    Fault(
        "same_pairs_every_epoch",
        "every epoch draws the same pairs as the first one",
        "fvjax/data/plans.py",
        "SeedSequence([self.seed, epoch])",
        "SeedSequence([self.seed, 0])",
        (PAIRS + "test_epochs_seeds_and_kinds_are_drawn_anew",),
    ),
    Fault(
        "half_of_the_couples",
        "an epoch's impostor pairs come from half as many pairs of identities, each used twice",
        "fvjax/data/pairs.py",
        "np.arange(min(size, len(people)",
        "np.arange(min(1 + size // 2, len(people)",
        (PAIRS + "test_identities_and_images_take_turns",),
    ),
    Fault(
        "turns_without_pairs",
        "an identity is still drawn after all its pairs of images have been used",
        "fvjax/data/pairs.py",
        "counts * (counts - 1) // 2, n // 2",
        "counts * (counts - 1), n // 2",
        (PAIRS + "test_every_epoch_of_genuine_and_impostor_pairs",),
    ),
    Fault(
        "kinds_in_order",
        "an epoch has all its genuine pairs before its impostor pairs instead of in random order",
        "fvjax/data/pairs.py",
        "return first[order], second[order], label[order]",
        "return first, second, label",
        (PAIRS + "test_an_epoch_of_the_seeds_size",),
    ),
    Fault(
        "one_image_of_each",
        "within an epoch, all impostor pairs of an identity show the same one of its images",
        "fvjax/data/pairs.py",
        "(some % (counts[a] * counts[b]) + turn)",
        "turn",
        (PAIRS + "test_an_epoch_of_the_seeds_size",),
    ),
    Fault(
        "shortest_added_token",
        "where several added tokens match, the tokenizer takes the shortest instead of the longest",
        "fvjax/data/tokenizers/internlm2.py",
        "key=len, reverse=True",
        "key=len",
        (PROMPTS + "test_the_longest_added_token_wins",),
    ),
    Fault(
        "added_token_contradiction",
        "the tokenizer accepts added tokens whose ids leave gaps after the model's pieces",
        "fvjax/data/tokenizers/internlm2.py",
        "if beyond != set(",
        "if beyond < set(",
        (PROMPTS + "test_contradictions_are_named",),
    ),
    Fault(
        "unknown_special_token",
        "a special token without an id becomes the unknown token instead of an error",
        "fvjax/data/tokenizers/internlm2.py",
        "if id == self._pieces.unk_id() and",
        "if id < 0 and",
        (PROMPTS + "test_contradictions_are_named",),
    ),
    Fault(
        "answers_of_two_tokens",
        "for an answer that is split into several tokens, the first token is used instead of an error",
        "fvjax/data/prompts.py",
        "if len(yes) != 1 or len(no) != 1 or",
        "if",
        (PROMPTS + "test_answers_of_several_tokens_are_refused",),
    ),
    Fault(
        "answers_swapped_in_the_loss",
        "the loss teaches the answer No for genuine pairs",
        "fvjax/losses/pair_answer.py",
        "labels == 1",
        "labels == 0",
        (ANSWER + "test_loss_against_a_loop",),
    ),
    Fault(
        "answers_swapped_in_the_score",
        "the score is the probability of No instead of Yes",
        "fvjax/losses/pair_answer.py",
        "logits[:, yes].astype(jnp.float32) - logits[:, no].astype(jnp.float32)",
        "logits[:, no].astype(jnp.float32) - logits[:, yes].astype(jnp.float32)",
        (ANSWER + "test_p_yes_is_the_references",),
    ),
    Fault(
        "p_yes_of_the_vocabulary",
        "P(Yes) is normalised over the whole vocabulary instead of over Yes and No",
        "fvjax/losses/pair_answer.py",
        "jax.nn.sigmoid(logits[:, yes].astype(jnp.float32) - logits[:, no].astype(jnp.float32))",
        "jax.nn.softmax(logits.astype(jnp.float32))[:, yes]",
        (ANSWER + "test_p_yes_is_the_references",),
    ),
    Fault(
        "two_tokens_by_default",
        "by default the answer loss is over Yes and No instead of the whole vocabulary",
        "fvjax/losses/pair_answer.py",
        'over: str = "vocab"',
        'over: str = "yes_no"',
        (ANSWER + "test_the_vocabulary_is_the_default",),
    ),
    Fault(
        "answer_loss_in_half_precision",
        "the answer loss is computed in the dtype of the logits instead of float32",
        "fvjax/losses/pair_answer.py",
        "logits = logits.astype(jnp.float32)",
        "logits = logits",
        (ANSWER + "test_half_precision_logits_are_summed_in_float32",),
    ),
    Fault(
        "gate_halves_swapped",
        "the dead-adapter check inspects A at the first step and B at the second, instead of B first",
        "fvjax/models/lora.py",
        '(1, "/b", first), (2, "/a", second)',
        '(1, "/a", first), (2, "/b", second)',
        (LORA + "test_adapters_that_learn_pass_the_gate",),
    ),
    Fault(
        "gate_any_zero",
        "the dead-adapter check reports an adapter of which a single gradient element is zero",
        "fvjax/models/lora.py",
        "(g == 0).all(",
        "(g == 0).any(",
        (LORA + "test_the_gate_looks_at_b_first_and_then_at_a",),
    ),
    Fault(
        "gate_whole_stack",
        "the dead-adapter check reports a stack only if all its layers are dead, and so misses a single dead layer",
        "fvjax/models/lora.py",
        "(g == 0).all(axis=(-2, -1))",
        "(g == 0).all()",
        (LORA + "test_dead_adapters_are_named_by_layer",),
    ),
    Fault(
        "cached_keys",
        "the backward pass of GradCache drops other paths than its forward pass",
        "fvjax/losses/accumulation.py",
        "_, vjp = jax.vjp(lambda trainable: embed(trainable, part), trainable)",
        "def turn(x):\n                return x[::-1] if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x\n"
        "\n            _, vjp = jax.vjp(lambda trainable: embed(trainable, jax.tree.map(turn, part)), trainable)",
        (CACHE + "test_chunks_equal_one_batch[2-1]",),
    ),
    Fault(
        "cached_rows",
        "GradCache gives a chunk the loss's gradient for the rows of other chunks",
        "fvjax/losses/accumulation.py",
        "(divided, split(pull, parts))",
        "(divided, pull.reshape(parts, -1, *pull.shape[1:]))",
        (CACHE + "test_chunks_equal_one_batch[2-1]",),
    ),
    Fault(
        "last_chunk_only",
        "accumulation keeps the last chunk's gradient only",
        "fvjax/losses/accumulation.py",
        "sum + g.astype(jnp.float32)",
        "0 * sum + g.astype(jnp.float32)",
        (CACHE + "test_chunks_equal_one_batch[2-1]",),
    ),
    Fault(
        "half_precision_sum",
        "accumulation sums the chunks' gradients in the parameters' dtype instead of float32",
        "fvjax/losses/accumulation.py",
        "sum + g.astype(jnp.float32)",
        "(sum.astype(g.dtype) + g).astype(jnp.float32)",
        (CACHE + "test_half_precision_gradients_are_summed_in_float32",),
    ),
    Fault(
        "all_chunks_at_once",
        "GradCache embeds all chunks at once, so that the activations of the whole batch are in memory",
        "fvjax/losses/accumulation.py",
        "jax.lax.map(lambda part: embed(trainable, part), divided)",
        "jax.vmap(lambda part: embed(trainable, part))(divided)",
        (CACHE + "test_activations_are_those_of_a_chunk",),
    ),
    Fault(
        "chunked_batch_norm",
        "a model with batch norm is accepted with two accumulation chunks",
        "fvjax/losses/accumulation.py",
        "if parts > 1 and stats",
        "if parts > 2 and stats",
        (CACHE + "test_what_cannot_be_chunked_is_refused",),
    ),
    # ---- several hosts, resuming, readers of foreign files, stores
    Fault(
        "hosts_overlap",
        "every host reads the pairs of the first host",
        "fvjax/data/pipeline.py",
        "index = step * total + rows",
        "index = step * total + np.arange(len(rows))",
        (PIPELINE + "test_hosts_share_every_step_between_them",),
    ),
    Fault(
        "resume_repeats_a_batch",
        "a resumed pipeline repeats the last batch before the checkpoint",
        "fvjax/data/pipeline.py",
        "range(start_step, start_step + num_steps)",
        "range(max(start_step - 1, 0), start_step + num_steps)",
        (PIPELINE + "test_resuming_continues_the_same_sequence",),
    ),
    Fault(
        "resume_from_the_first_batch",
        "a resumed run reads the data from the first batch on",
        "fvjax/experiment.py",
        "start_step=step,",
        "start_step=0,",
        ("tests/test_main.py::test_killed_and_resumed_is_bit_identical",),
    ),
    Fault(
        "any_checkpoint",
        "a checkpoint that was trained on another base or other data is accepted",
        "fvjax/training/checkpoint.py",
        "if saved.get(key) != value:",
        "if key not in saved:",
        ("tests/test_checkpoint.py::test_a_checkpoint_of_another_base_data_or_model_is_refused",),
    ),
    Fault(
        "lfw_number",
        "the second image of an LFW pair gets the number of the first image",
        "fvjax/data/readers/benchmark_lists.py",
        "{b}_{int(cells[-1]):04d}",
        "{b}_{int(cells[1]):04d}",
        ("tests/test_prepare.py::test_lfw",),
    ),
    Fault(
        "bin_any_name",
        "a .bin may call any unknown name, which then counts as creating an array, instead of being refused",
        "fvjax/data/readers/plain_pickle.py",
        "KNOWN.get(dotted)",
        'KNOWN.get(dotted, "array")',
        (BIN + "test_hostile_files_execute_nothing",),
    ),
    Fault(
        "bin_instructions_without_end",
        "a .bin may have an unlimited number of pickle instructions",
        "fvjax/data/readers/plain_pickle.py",
        "if count > limit:",
        "if count > self.size:",
        (BIN + "test_bombs_cost_neither_time_nor_memory",),
    ),
    Fault(
        "bin_genuine_pairs_join_nobody",
        "the genuine pairs of a .bin do not join identities, so every image becomes an identity of its own",
        "fvjax/data/readers/insightface_bin.py",
        "parent[high] = low",
        "parent[low] = low",
        (BIN + "test_the_store",),
    ),
    Fault(
        "bin_contradictions_stay",
        "impostor pairs of a .bin are kept although the genuine pairs show both images to be one identity",
        "fvjax/data/readers/insightface_bin.py",
        "usable[contradictions] = False",
        "usable[contradictions] = True",
        (BIN + "test_a_contradiction_is_an_error_or_dropped_and_counted",),
    ),
    Fault(
        "tfds_foreign_features",
        "TFDS imports any module that features.json names",
        "fvjax/data/readers/tfds_source.py",
        "if not kind.startswith(ours)",
        "if not kind",
        ("tests/test_tfds_source.py::test_a_dataset_cannot_make_tfds_import_a_module",),
    ),
    Fault(
        "index_shape_believed",
        "the length that a store's index states is not compared with its contents",
        "fvjax/data/stores/store.py",
        "or shape != values.shape",
        "",
        ("tests/test_fuzz.py::test_a_forged_index_is_refused",),
    ),
    Fault(
        "jpeg_scans",
        "a JPEG may have an unlimited number of scans",
        "fvjax/data/images.py",
        "* width * height > MAX_WORK",
        "* width * height < 0",
        ("tests/test_images.py::test_a_jpeg_of_thousands_of_scans_is_refused",),
    ),
    Fault(
        "rec_parts",
        "the magic number at which a record was split is not restored when its parts are joined",
        "fvjax/data/readers/recordio/records.py",
        "return MARK.join(parts), at",
        'return b"".join(parts), at',
        ("tests/test_recordio.py::test_records_of_several_parts",),
    ),
    Fault(
        "rec_swallows",
        "a record with too large a length swallows the records after it",
        "fvjax/data/readers/recordio/scanner.py",
        "(word <= LENGTH) & (end <= after)",
        "(word <= LENGTH)",
        ("tests/test_recordio.py::test_damage_is_located_and_the_rest_is_read",),
    ),
    Fault(
        "rec_stray_bytes",
        "bytes between two records are neither read nor counted as rejected",
        "fvjax/data/readers/recordio/scanner.py",
        "stray = end < after",
        "stray = end < 0",
        ("tests/test_recordio.py::test_damage_is_located_and_the_rest_is_read",),
    ),
    Fault(
        "rec_block_border",
        "a record that extends beyond the end of a block is cut off there",
        "fvjax/data/readers/recordio/scanner.py",
        "yield rows[:-1], int(pending[0, 0])",
        "yield rows[:-1], first + 4 * block",
        ("tests/test_recordio.py::test_anything_is_read_or_refused",),
    ),
    Fault(
        "rec_range",
        "the range in an identity header may include images with another label",
        "fvjax/data/readers/recordio/companions.py",
        "np.flatnonzero(label != label[:1])",
        "np.flatnonzero(label != label)",
        ("tests/test_recordio.py::test_a_label_that_disagrees_with_its_header",),
    ),
    Fault(
        "rec_val_share",
        "validation takes one image too many of each identity",
        "fvjax/data/readers/recordio/conversion.py",
        "rank < np.floor(counts",
        "rank <= np.floor(counts",
        ("tests/test_recordio.py::test_select",),
    ),
    Fault(
        "rec_top",
        "--top keeps the identities with the fewest images instead of the most",
        "fvjax/data/readers/recordio/conversion.py",
        "np.lexsort((names, -counts))",
        "np.lexsort((names, counts))",
        ("tests/test_recordio.py::test_select",),
    ),
    Fault(
        "rec_spoiled_shard",
        "a finished shard is reused without comparing its hash",
        "fvjax/data/readers/recordio/shard_jobs.py",
        '["sha256"] == _sha256(job.file)',
        '["sha256"]',
        ("tests/test_recordio.py::test_finished_shards_are_kept_and_spoiled_ones_written_again",),
    ),
    Fault(
        "rec_other_plan",
        "finished shards of a conversion with other options are reused",
        "fvjax/data/readers/recordio/conversion.py",
        "elif file.read_text() != plan:",
        "elif not file.read_text():",
        ("tests/test_recordio.py::test_what_is_kept_is_of_the_same_source_and_options",),
    ),
    Fault(
        "check_header_only",
        "images are stored after a check of their header alone, without decoding them",
        "fvjax/data/images.py",
        'simplejpeg.decode_jpeg(jpeg, colorspace="RGB", min_height=1, min_width=1, min_factor=8)',
        "pass",
        ("tests/test_images.py::test_check_refuses_what_decode_refuses",),
    ),
    Fault(
        "hash_of_nothing",
        "data_hash does not include the records",
        "fvjax/data/stores/writer.py",
        "self._hash.update(self._shards[-1].add(jpeg, label, identity, source, encoded))",
        "self._shards[-1].add(jpeg, label, identity, source, encoded)",
        ("tests/test_store.py::test_data_hash_is_of_the_contents_in_order",),
    ),
    Fault(
        "feature_digest_without_type",
        "a record's digest omits a feature's dtype and shape, so data_hash does not change when they do",
        "fvjax/data/stores/shards.py",
        "parts += [value.name.encode(), value.type.encode(), value.data]",
        "parts += [value.name.encode(), value.data]",
        ("tests/test_store_features.py::test_the_data_hash_depends_on_every_ingredient_of_a_feature",),
    ),
    Fault(
        "feature_shape_believed",
        "a manifest may declare features that are larger than the store's files",
        "fvjax/data/stores/store.py",
        "if n * sum(feature.nbytes for feature in self.features.values()) > self._shard_bytes:",
        "if n < 0:",
        ("tests/test_store_features.py::test_a_forged_manifest_is_refused[beyond the file]",),
    ),
    Fault(
        "feature_infinity",
        "features may contain infinite numbers",
        "fvjax/data/stores/features.py",
        "not np.isfinite(array).all()",
        "np.isnan(array).any()",
        ("tests/test_store_features.py::test_a_bad_value_is_refused_and_leaves_the_store_usable[infinity]",),
    ),
    # ---- conversion
    Fault(
        "fc_layout",
        "conversion leaves the input axis of the fc layer in torch's (C, H, W) order, in both directions",
        "weights_convert/iresnet.py",
        "return Transform(to_fvjax, to_original)",
        "return Transform(lambda x: x.T, lambda x: x.T)",
        (TWIN,),
    ),
    Fault(
        "lenient_conversion",
        "conversion ignores unknown keys instead of refusing them",
        "weights_convert/rules.py",
        "any(re.fullmatch(p, key) for p in ignored)",
        "True",
        ("tests/test_convert.py::test_weights_that_do_not_fit",),
    ),
    # ---- config.compat, attention by head, convolutions, remat, shared images
    Fault(
        "first_part_instead_of_the_last",
        "compat.last_micro_batch keeps the gradient of the first part of the batch instead of the last",
        "fvjax/training/step.py",
        "accumulation.split(x, parts)[-1]",
        "accumulation.split(x, parts)[0]",
        (GRADIENTS + "test_compat_accumulates_like_the_reference",),
    ),
    Fault(
        "last_part_undivided",
        "compat.last_micro_batch does not divide the gradient by the number of parts",
        "fvjax/training/step.py",
        "lambda g: g / recipe.parts",
        "lambda g: g",
        ("tests/test_accumulation.py::test_the_last_part_alone_is_divided_by_the_number_of_parts",),
    ),
    Fault(
        "sum_of_the_parts",
        "the gradient of pair_answer is the sum over the parts of a batch instead of their mean",
        "fvjax/losses/accumulation.py",
        "jax.tree.map(lambda g: g / weight, grads)",
        "jax.tree.map(lambda g: g / (weight / parts), grads)",
        (GRADIENTS + "test_a_batch_in_parts_is_the_whole_batch[tiny_pair-1]",),
    ),
    Fault(
        "keys_of_the_other_image",
        "the two images of a pair use the drop-path keys of other images",
        "fvjax/models/vlm.py",
        "keys=None if keys is None else keys.reshape(-1))",
        "keys=None if keys is None else keys.T.reshape(-1))",
        (GRADIENTS + "test_a_batch_in_parts_is_the_whole_batch[tiny_pair-1]",),
    ),
    Fault(
        "by_head_sees_ahead",
        "attention by head lets a token attend to the next one",
        "fvjax/models/layers.py",
        "jnp.tri(tokens, keys, keys - tokens, dtype=bool)",
        "jnp.tri(tokens, keys, keys - tokens + 1, dtype=bool)",
        ("tests/test_attention.py::test_by_head_is_attention[True-300-6-2]",),
    ),
    Fault(
        "by_head_leaves_keys_out",
        "non-causal attention by head leaves out the keys after the current block of queries",
        "fvjax/models/layers.py",
        "slice(0, keys - tokens + end if causal else keys)",
        "slice(0, keys - tokens + end)",
        ("tests/test_attention.py::test_by_head_is_attention[False-300-6-2]",),
    ),
    Fault(
        "input_gradient_not_turned",
        "on the CPU, the input gradient of a wide convolution does not rotate the kernel by 180 degrees",
        "fvjax/models/cpu_conv.py",
        "for i in (3, 1, 2, 0) for j in (3, 1, 2, 0)",
        "for i in (0, 1, 2, 3) for j in (0, 1, 2, 3)",
        ("tests/test_cpu_conv.py::test_fewer_products_are_as_exact",),
    ),
    Fault(
        "tiles_of_the_last_images",
        "on the CPU, the weight gradient of a wide convolution uses only the images of the last iteration",
        "fvjax/models/cpu_conv.py",
        "return [a + jnp.einsum(",
        "return [0 * a + jnp.einsum(",
        ("tests/test_cpu_conv.py::test_fewer_products_are_as_exact",),
    ),
    Fault(
        "strided_taps_exchanged",
        "on the CPU, the input gradient of a strided convolution swaps the first and last row of the kernel",
        "fvjax/models/cpu_conv.py",
        "slice(2, None, -2)",
        "slice(0, None, 2)",
        ("tests/test_cpu_conv.py::test_values_and_gradients",),
    ),
    Fault(
        "weight_gradient_of_the_last_image",
        "on the CPU, the weight gradient of a convolution uses only the last image of each device",
        "fvjax/models/cpu_conv.py",
        "return total + jnp.einsum(",
        "return 0 * total + jnp.einsum(",
        ("tests/test_cpu_conv.py::test_values_and_gradients",),
    ),
    Fault(
        "by_head_gradient_unscaled",
        "the gradient of attention by head omits the scale of the logits",
        "fvjax/models/layers.py",
        "(p * (dp - inner[:, :, rows]) * q.shape[-1] ** -0.5)",
        "(p * (dp - inner[:, :, rows]))",
        ("tests/test_attention.py::test_by_head_is_attention[False-300-6-2]",),
    ),
    Fault(
        "by_head_twice",
        "with remat, the backward pass repeats the forward pass of attention by head",
        "fvjax/models/layers.py",
        "checkpoint_name(lax.map(attend_head, (q, k, v)), SAVED)",
        "lax.map(attend_head, (q, k, v))",
        ("tests/test_attention.py::test_what_remat_computes_again[dots]",),
    ),
    Fault(
        "products_twice",
        "with remat, the backward pass repeats a layer's matrix products",
        "fvjax/models/layers.py",
        "return checkpoint_name(y, SAVED)",
        "return y",
        ("tests/test_attention.py::test_dots_keeps_a_sum_and_not_its_terms",),
    ),
    Fault(
        "adapters_inner_twice",
        "with remat, the backward pass repeats an adapter's product of A with its input",
        "fvjax/models/layers.py",
        "checkpoint_name(x @ a.T, SAVED)",
        "x @ a.T",
        ("tests/test_attention.py::test_dots_keeps_a_sum_and_not_its_terms",),
    ),
    Fault(
        "newest_for_best",
        "the newest checkpoint is used as the best one",
        "fvjax/training/checkpoint.py",
        "key=lambda step: (accuracies.get(step, 0.0), step), default",
        "key=lambda step: step, default",
        ("tests/test_validation.py::test_the_best_checkpoint_is_kept_beside_the_newest",),
    ),
    Fault(
        "validation_folds_mixed",
        "validation pairs are stored in the order in which they were drawn instead of fold by fold",
        "fvjax/data/pairs.py",
        'order = np.argsort(fold, kind="stable")',
        "order = np.arange(count)",
        ("tests/test_validation.py::test_validation_pairs[2000]",),
    ),
    Fault(
        "cache_swaps_faces",
        "faces from the cache on the device have another order than the batch's labels",
        "fvjax/training/feed.py",
        'gather(table, arrays.pop("ids"))',
        'gather(table, arrays.pop("ids")[::-1])',
        ("tests/test_feed.py::test_batches_are_the_plans_wherever_the_faces_are[1-device]",),
    ),
    Fault(
        "every_device_does_all",
        "visual tokens are inserted by row number, for which a sharded batch is first gathered on every device",
        "fvjax/models/vlm.py",
        "return put(embedded, tokens.astype(embedded.dtype), index)",
        'return embedded.at[np.arange(len(index))[:, None], index].set(tokens.astype(embedded.dtype), mode="drop")',
        (GRADIENTS + "test_devices_share_the_work[tiny_siamese]",),
    ),
    Fault(
        "groups_summed",
        "compat.negatives_group sums the groups' losses instead of averaging them",
        "fvjax/losses/contrastive.py",
        "return jnp.mean(jax.vmap(",
        "return jnp.sum(jax.vmap(",
        (GRADIENTS + "test_compat_negatives_of_one_group",),
    ),
    Fault(
        "statistics_of_the_last_group",
        "compat.batch_norm_group keeps the running statistics of the last group instead of the first",
        "fvjax/models/encoder.py",
        "lambda s: s[0], new",
        "lambda s: s[-1], new",
        (GRADIENTS + "test_compat_batch_statistics_of_one_group",),
    ),
    Fault(
        "gate_left_open",
        "training never checks for dead adapters",
        "fvjax/training/reporter.py",
        "if len(self.gate) == 2:",
        "if len(self.gate) == 3:",
        ("tests/test_mllm.py::test_a_dead_adapter_stops_at_the_second_step",),
    ),
    Fault(
        "pools_in_another_order",
        "several poolings computed in one pass are returned in reverse order",
        "fvjax/models/vlm.py",
        "for pool in pools], axis=1)",
        "for pool in pools[::-1]], axis=1)",
        (VLM + "test_pools_of_one_pass",),
    ),
    Fault(
        "second_image_of_another_pair",
        "pairs that share a first image are answered with the second image of another pair",
        "fvjax/evals/verification.py",
        "visual[pairs.b[padded]]",
        "visual[np.roll(pairs.b[padded], 1)]",
        (VERIFICATION + "test_answers_share_what_is_kept_of_a_first_image",),
    ),
    Fault(
        "kept_of_another_first_image",
        "a pair is answered with the cache of another first image",
        "fvjax/evals/verification.py",
        "after(cache, cache_rows,",
        "after(cache, cache_rows * 0,",
        (VERIFICATION + "test_answers_share_what_is_kept_of_a_first_image",),
    ),
    # ---- evaluation, checkpoints, several processes, profiling
    Fault(
        "evaluated_in_training_mode",
        "evaluation normalises with the statistics of its own batch instead of the running ones",
        "fvjax/tasks/verification.py",
        "encoder(variables, faces)[0]",
        "encoder(variables, faces, train=True)[0]",
        (TRAIN + "test_an_embedding_does_not_depend_on_its_batch",),
    ),
    Fault(
        "not_cosine",
        "scores are dot products instead of cosine similarities",
        "fvjax/evals/verification.py",
        "products / norms[a] / norms[b]",
        "products",
        (VERIFICATION + "test_scores_are_cosines_of_the_named_records",),
    ),
    Fault(
        "labels_swapped_in_the_protocol",
        "the protocol treats genuine pairs as impostors and impostors as genuine",
        "fvjax/evals/folds.py",
        "labels = labels.astype(bool)",
        "labels = ~labels.astype(bool)",
        (FOLDS + "test_by_hand",),
    ),
    Fault(
        "labels_swapped_in_the_entry",
        "a benchmark passes its genuine and impostor labels to the protocol swapped",
        "fvjax/evals/verification.py",
        "pairs.same[rows],",
        "~pairs.same[rows],",
        (VERIFICATION + "test_entry_is_the_folds_figures_and_where_they_come_from",),
    ),
    Fault(
        "roc_axes",
        "the ROC returns FAR as TAR and TAR as FAR",
        "fvjax/evals/folds.py",
        "return accept_rate(~labels), accept_rate(labels)",
        "return accept_rate(labels), accept_rate(~labels)",
        (FOLDS + "test_by_hand",),
    ),
    Fault(
        "strict_threshold",
        "a score equal to the threshold counts as a different person",
        "fvjax/evals/folds.py",
        "(scores[test] >= threshold[:, None])",
        "(scores[test] > threshold[:, None])",
        (FOLDS + "test_a_score_at_the_threshold_counts_as_the_same_person",),
    ),
    Fault(
        "leak_test_fold",
        "the threshold of a fold is chosen on the fold itself",
        "fvjax/evals/folds.py",
        "test, train = fold == f, fold != f",
        "test, train = fold == f, fold == f",
        (FOLDS + "test_the_test_fold_has_no_say_in_its_threshold",),
    ),
    Fault(
        "leak_all_folds",
        "the threshold of a fold is chosen on all folds, including the fold itself",
        "fvjax/evals/folds.py",
        "test, train = fold == f, fold != f",
        "test, train = fold == f, fold >= 0",
        (FOLDS + "test_the_test_fold_has_no_say_in_its_threshold",),
    ),
    Fault(
        "far_rank",
        "k is rounded up instead of down, so the threshold accepts one impostor too many",
        "fvjax/evals/folds.py",
        "np.floor(above[:, -1] * FOLD_FAR + 1e-9)",
        "np.ceil(above[:, -1] * FOLD_FAR - 1e-9)",
        (FOLDS + "test_far_threshold_is_the_kth_impostor_of_the_other_folds",),
    ),
    Fault(
        "bootstrap_over_pairs",
        "confidence intervals ignore that several pairs share a person",
        "fvjax/evals/verification.py",
        "            identities_a=pairs.identity_a[rows],\n            identities_b=pairs.identity_b[rows],\n",
        "",
        (VERIFICATION + "test_entry_is_the_folds_figures_and_where_they_come_from",),
    ),
    Fault(
        "genuine_pairs_weigh_twice",
        "in the bootstrap, a genuine pair has the square of its identity's multiplicity as weight",
        "fvjax/evals/folds.py",
        "np.where(labels, np.int32(1), weights[:, identities[1]])",
        "weights[:, identities[1]]",
        (FOLDS + "test_a_genuine_pair_weighs_its_identity_once",),
    ),
    Fault(
        "seen_not_marked",
        "a benchmark's results omit the part on identities that were not trained on",
        "fvjax/tasks/benchmarks.py",
        "seen=known or None,",
        "seen=None,",
        ("tests/test_evaluate.py::test_seen_identities_are_marked_within_one_naming",),
    ),
    Fault(
        "seen_across_namings",
        "person 100 of one data set counts as person 100 of another, although the data sets are unrelated",
        "fvjax/tasks/benchmarks.py",
        "comparable = seen and benchmark.names and benchmark.names == self.data.names",
        "comparable = seen",
        ("tests/test_evaluate.py::test_seen_identities_are_marked_within_one_naming",),
    ),
    Fault(
        "seen_on_one_side",
        "a pair whose second person was seen in training counts as unseen",
        "fvjax/evals/verification.py",
        " | np.isin(pairs.identity_b, list(seen))",
        "",
        (VERIFICATION + "test_identity_disjoint_leaves_out_every_pair_with_a_seen_identity",),
    ),
    Fault(
        "hash_of_a_checkpoint_ignored",
        "a checkpoint that can be read is restored even if its hash does not match",
        "fvjax/training/checkpoint.py",
        "if (now := digest(tree)) != saved",
        "if (now := digest(tree)) == 0 != saved",
        ("tests/test_checkpoint.py::test_a_checkpoint_that_reads_well_but_is_not_what_was_saved_is_refused",),
    ),
    Fault(
        "damaged_checkpoint_stays",
        "a damaged checkpoint is not moved aside and blocks the next save of its step",
        "fvjax/training/checkpoint.py",
        "(self.path / str(step)).rename(_free(aside))",
        "pass",
        ("tests/test_checkpoint.py::test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken[truncated]",),
    ),
    Fault(
        "remat_by_the_lower_estimate",
        "remat is chosen by the lower instead of the upper estimate of a step's memory",
        "fvjax/planning/programs.py",
        'most = least + needed["working set"]',
        "most = least",
        ("tests/test_plan.py::test_remat_is_the_fastest_that_fits",),
    ),
    Fault(
        "adapter_gradient_turned",
        "the gradient of an adapter is written as a product for which XLA transposes the activations",
        "fvjax/models/layers.py",
        "over_rows(inner, dy)",
        "over_rows(dy, inner).T",
        ("tests/test_lora.py::test_low_rank_is_two_products_and_nothing_large_is_turned_for_its_gradients",),
    ),
    Fault(
        "failed_save_not_awaited",
        "a save that failed in one thread is reported while another thread of it is still writing",
        "fvjax/training/checkpoint.py",
        "thread.join(60)",
        "pass",
        ("tests/test_checkpoint.py::test_a_save_that_failed_in_one_part_is_over_in_all_when_that_is_told[fail]",),
    ),
    Fault(
        "hash_without_places",
        "the hash of a checkpoint does not change when values swap places",
        "fvjax/training/checkpoint.py",
        "^ (place + name) *",
        "^ (0 * place + name) *",
        ("tests/test_checkpoint.py::test_a_hash_is_of_bits_names_and_places_not_of_where_they_live",),
    ),
    Fault(
        "failed_save_unnoticed",
        "a failed background save is never reported",
        "fvjax/training/checkpoint.py",
        "self._named(self.manager.latest_step(), self.manager.wait_until_finished)",
        "pass",
        ("tests/test_bad_input.py::test_a_full_disk_while_a_checkpoint_is_written",),
    ),
    Fault(
        "asked_and_not_saved",
        "a single process ignores a signal to stop that arrives during a step",
        "fvjax/training/agreement.py",
        "        if self.alone and self.request.asked:\n            return Action.STOP\n",
        "        if self.alone:\n            return Action.GO_ON\n",
        ("tests/test_preemption.py::test_it_saves_after_the_step_under_way_and_goes_on_to_the_same_end[2]",),
    ),
    Fault(
        "evaluation_left_out",
        "a restart does not repeat an evaluation that was interrupted before any evaluation had finished",
        "fvjax/training/validation.py",
        "return bool(step) and self.due(step) and not (step in self.done and judged)",
        "return bool(step) and self.due(step) and bool(self.done) and not (step in self.done and judged)",
        ("tests/test_preemption.py::test_an_evaluation_that_was_cut_short_is_made_up_for",),
    ),
    Fault(
        "disagreement_unnoticed",
        "processes with different configs start training together",
        "fvjax/parallel/distributed.py",
        "if value != expected:",
        "if value is None:",
        ("tests/test_processes.py::test_processes_that_disagree_all_stop_and_say_in_what",),
    ),
    Fault(
        "one_hears_of_its_problem",
        "a problem of one process is reported to that process only, not to the others",
        "fvjax/parallel/distributed.py",
        'for i, one in enumerate(messages) if one["problem"]',
        'for i, one in enumerate(messages) if one["problem"] and i == _me',
        ("tests/test_processes.py::test_what_one_process_lacks_all_hear_of",),
    ),
    Fault(
        "frozen_peer_unnoticed",
        "a process that has stopped responding is not noticed by the others, so jax's heartbeat ends the run "
        "without naming it",
        "fvjax/parallel/distributed.py",
        "if now - when > self.heartbeat and i != _me:",
        "if now - when > 100 * self.heartbeat and i != _me:",
        ("tests/test_processes.py::test_a_frozen_process_ends_the_others_within_the_heartbeat[0]",),
    ),
    Fault(
        "worker_lost_as_a_bug",
        "the loss of a killed data worker ends the run with a traceback, as a bug would",
        "fvjax/data/pipeline.py",
        "raise errors.WorkerLost(reason) from None",
        "pass",
        ("tests/test_pipeline.py::test_a_killed_worker_process_is_told_from_a_mistake[identities]",),
    ),
    Fault(
        "waits_in_vain",
        "a process waits for absent ones until jax aborts it, instead of ending with a message of its own",
        "fvjax/parallel/distributed.py",
        "    absent.start()",
        "    pass",
        ("tests/test_processes.py::test_a_process_that_waits_for_others_in_vain_says_so[1]",),
    ),
    Fault(
        "taken_port_left_to_jax",
        "process 0 does not check whether its port is free before it hands the port to jax",
        "fvjax/parallel/distributed.py",
        "if place.process == 0:",
        "if place.process == -1:",
        ("tests/test_processes.py::test_a_port_that_is_taken_is_named",),
    ),
    Fault(
        "coordinator_without_a_port",
        "any text given as --coordinator is passed on to jax",
        "fvjax/parallel/distributed.py",
        "if not (host and port.isdecimal()",
        "if place.coordinator is None and not (host and port.isdecimal()",
        ("tests/test_processes.py::test_a_coordinator_without_a_port_is_refused[localhost:65536]",),
    ),
    Fault(
        "overlaps_are_busy_twice",
        "the profile counts simultaneous operations as if they had run one after the other",
        "fvjax/training/profiling.py",
        "op.end - max(op.start, until)",
        "op.end - op.start",
        ("tests/test_profiling.py::test_shares_and_idle_time_by_hand",),
    ),
    Fault(
        "loops_count_with_what_is_in_them",
        "the profile counts a loop's time in addition to the time of the operations inside it",
        "fvjax/training/profiling.py",
        " and known[op.name][0] not in CONTAINERS",
        "",
        ("tests/test_profiling.py::test_shares_and_idle_time_by_hand",),
    ),
    Fault(
        "names_of_another_program",
        "the profile does not read operation names from the compiled step",
        "fvjax/training/profiling.py",
        "self.text = step.as_text()",
        "pass",
        ("tests/test_profiling.py::test_a_run_is_traced_and_told_of",),
    ),
    Fault(
        "a_cpus_programs_are_kept",
        "compiled programs are cached on CPUs too, where another machine's CPU may not be able to run them",
        "fvjax/runtime.py",
        'if jax.default_backend() != "cpu" and "JAX_COMPILATION',
        'if "JAX_COMPILATION',
        ("tests/test_main.py::test_compiled_programs_are_kept_but_not_a_cpus[cpu-False]",),
    ),
    Fault(
        "similarities_all_kept",
        "InfoNCE keeps all rows of the similarity matrix of a large batch for the backward pass",
        "fvjax/losses/contrastive.py",
        "jax.lax.map(jax.checkpoint(denominators), tuple(parts))",
        "jax.lax.map(denominators, tuple(parts))",
        ("tests/test_contrastive.py::test_memory_of_32768_images_is_bounded",),
    ),
    # ---- effects on which users rely; when these were first tried, every test passed
    Fault(
        "train_images_per_s",
        "images_per_s counts pairs instead of images",
        "fvjax/training/reporter.py",
        'values["images_per_s"] = self.work.images_per_step / seconds',
        'values["images_per_s"] = self.work.images_per_step // 2 / seconds',
        ("tests/test_run_files.py::test_images_per_second_are_images_by_the_clock",),
    ),
    Fault(
        "plots_roc_axes",
        "roc.png has the axes of FAR and TAR swapped",
        "fvjax/evals/plots.py",
        'axes.plot(x, y, drawstyle="steps-post"',
        'axes.plot(y, x, drawstyle="steps-post"',
        ("tests/test_table_and_plots.py::test_the_roc_has_true_accepts_over_false_accepts",),
    ),
    Fault(
        "table_auc_eer",
        "the table shows AUC in the column EER and EER in the column AUC",
        "fvjax/evals/verification.py",
        'for key in ("auc", "eer")]',
        'for key in ("eer", "auc")]',
        ("tests/test_table_and_plots.py::test_every_cell_of_the_table_is_its_figure_in_per_cent_below_its_head",),
    ),
    Fault(
        "synthetic_stale_key",
        "the name of a synthetic set does not include its difficulty, so sets of other difficulty are reused",
        "fvjax/tasks/faces.py",
        "(*sizes, config.difficulty, config.seed)",
        "(*sizes, config.seed)",
        ("tests/test_hashes.py::test_the_name_of_a_synthetic_set_holds_what_it_was_drawn_with",),
    ),
    Fault(
        "pipeline_memory_unit",
        "MemAvailable is read as MB instead of kB, so faces that do not fit into memory are never refused",
        "fvjax/data/pipeline.py",
        "1024 * float(line.split()[1])",
        "1024**2 * float(line.split()[1])",
        ("tests/test_boundaries.py::test_memory_is_told_in_kibibytes",),
    ),
    Fault(
        "feed_table_split",
        "the table of faces cached on the devices is split over the mesh instead of replicated",
        "fvjax/training/feed.py",
        "sharding.whole(decoded, mesh, PartitionSpec())",
        "sharding.whole(decoded, mesh)",
        ("tests/test_agreement.py::test_cached_faces_need_not_divide_among_the_devices",),
    ),
    Fault(
        "prepare_walk_order",
        "sub-folders are read in the file system's order instead of sorted by name",
        "fvjax/data/readers/folders.py",
        "in sorted(os.walk(src / name, followlinks=True))",
        "in os.walk(src / name, followlinks=True)",
        ("tests/test_after_damage.py::test_a_folder_is_the_same_store_however_it_is_listed",),
    ),
    Fault(
        "store_single_counts",
        "the manifest counts identities without an image as identities with a single image",
        "fvjax/data/stores/writer.py",
        '"single_image_identities": int((counts == 1).sum())',
        '"single_image_identities": int((counts <= 1).sum())',
        ("tests/test_after_damage.py::test_records_of_a_rec_keep_what_is_theirs",),
    ),
    Fault(
        "recordio_labels_shifted",
        "after a rejected record, the labels of the index are shifted for the rest of the shard",
        "fvjax/data/readers/recordio/conversion.py",
        "labels.append(job.labels[good])",
        "labels.append(job.labels[: len(good)])",
        ("tests/test_after_damage.py::test_records_of_a_rec_keep_what_is_theirs",),
    ),
    Fault(
        "prompts_single_word",
        "an added token with single_word is accepted although the tokenizer does not implement it",
        "fvjax/data/tokenizers/internlm2.py",
        '("lstrip", "rstrip", "single_word")',
        '("lstrip", "rstrip")',
        ("tests/test_prompts.py::test_tokens_that_look_at_their_neighbours_are_refused_wherever_they_are_described",),
    ),
    Fault(
        "optim_b2",
        "the optimizer ignores config.optimizer.b2",
        "fvjax/training/optimizer.py",
        "optax.scale_by_adam(config.b1, config.b2, config.eps)",
        "optax.scale_by_adam(config.b1, eps=config.eps)",
        ("tests/test_config_keys.py::test_a_key_changes_what_it_is_there_for[optimizer.b2-0]",),
    ),
    Fault(
        "lora_one_draw",
        "all modules initialise their A matrix with the same key",
        "fvjax/models/lora.py",
        "module_key = jax.random.fold_in(key, zlib.crc32(name.encode()))",
        "module_key = key",
        ("tests/test_precision.py::test_new_adapters_are_drawn_for_each_module_and_each_layer",),
    ),
    Fault(
        "checkpoint_base_config",
        "the hash of the base does not include config.json",
        "fvjax/training/checkpoint.py",
        'p.suffix == ".safetensors" or p.name == "config.json"',
        'p.suffix == ".safetensors"',
        ("tests/test_hashes.py::test_another_base_has_another_hash",),
    ),
    Fault(
        "distributed_agree_keys",
        "processes do not compare facts that the first process lacks",
        "fvjax/parallel/distributed.py",
        'sorted(set(first) | set(one["facts"]))',
        "sorted(set(first))",
        ("tests/test_agreement.py::test_every_process_hears_who_has_what",),
    ),
    Fault(
        "layers_rms_half",
        "RMSNorm is computed in the model's dtype instead of float32",
        "fvjax/models/layers.py",
        "        x = x.astype(jnp.float32)\n        x = x * lax.rsqrt(lax.square(x).mean(-1, keepdims=True) "
        "+ self.eps)\n        return (x * scale).astype(self.dtype)",
        "        x = x * lax.rsqrt(lax.square(x).mean(-1, keepdims=True) + self.eps)\n        return (x * "
        "scale).astype(self.dtype)",
        ("tests/test_precision.py::test_rms_norm",),
    ),
    Fault(
        "iresnet_half_fc",
        "the last layers of an IResNet are computed in bfloat16 if the rest of the model is",
        "fvjax/models/iresnet.py",
        "full = jnp.promote_types(self.dtype, jnp.float32)",
        "full = self.dtype",
        ("tests/test_precision.py::test_the_last_layers_of_an_iresnet_are_float32",),
    ),
    Fault(
        "vlm_prefix_tokens",
        "the length passed with a shared prefix omits the second image, so dynamic rotary frequencies are wrong",
        "fvjax/models/vlm.py",
        "tokens=x.shape[1] + tokens)[1]",
        "tokens=x.shape[1])[1]",
        ("tests/test_precision.py::test_a_shared_prefix_knows_how_long_the_sequence_will_be",),
    ),
    # ---- written by an author who had not seen the tests
    Fault(
        "store_counts_all_names",
        "the manifest counts every name as an identity, including names without an image in the store",
        "fvjax/data/stores/writer.py",
        '"identities": int((counts > 0).sum()), "rejected"',
        '"identities": len(identities), "rejected"',
        ("tests/test_after_damage.py::test_records_of_a_rec_keep_what_is_theirs[a whole shard-picture]",),
    ),
    Fault(
        "main_cpu_devices_by_images",
        "the number of CPU devices is chosen to divide the images of a part instead of its pairs",
        "fvjax/main.py",
        "c.batch_size // task.images_per_example // c.accumulation",
        "c.batch_size // c.accumulation",
        ("tests/test_printed_lines.py::test_devices_are_as_many_as_share_the_batches_on_these_cores",),
    ),
    Fault(
        "plots_percent_of_100",
        "the TAR axis of roc.png shows 1.0% instead of 100%",
        "fvjax/evals/plots.py",
        "PercentFormatter(1)",
        "PercentFormatter()",
        ("tests/test_table_and_plots.py::test_the_roc_has_true_accepts_over_false_accepts",),
    ),
    Fault(
        "optim_warmup_scale",
        "the rate in warm-up epoch e is lr (e+1)/(W+1) instead of lr (e+1)/W, so warm-up never reaches lr",
        "fvjax/training/optimizer.py",
        "(e + 1) / max(warm, 1)",
        "(e + 1) / (warm + 1)",
        ("tests/test_optim.py::test_the_rate_at_the_edges_of_an_epoch[1-3-expected1]",),
    ),
    Fault(
        "checkpoint_best_deleted",
        "the checkpoint with the best validation accuracy is deleted once it is not among the newest",
        "fvjax/training/checkpoint.py",
        "for old in set(steps[: -self.keep]) - {self.best()}:",
        "for old in set(steps[: -self.keep]) - {step}:",
        ("tests/test_checkpoint.py::test_the_best_checkpoint_outlives_newer_ones_that_are_worse",),
    ),
    Fault(
        "layers_running_var_biased",
        "batch norm stores the biased running variance, unlike torch",
        "fvjax/models/layers.py",
        "m * var * (count / (count - 1))",
        "m * var",
        ("tests/test_precision.py::test_batch_norm_and_its_running_statistics[True]",),
    ),
    Fault(
        "tfds_unlabelled_is_last_name",
        "a TFDS record without a label (-1) gets the name of the last identity instead of being refused",
        "fvjax/data/readers/tfds_source.py",
        "if names and min(values) < 0:",
        "if names and max(values) < 0:",
        ("tests/test_tfds_source.py::test_what_cannot_be_read",),
    ),
    Fault(
        "pipeline_prefetch_ignored",
        "config.data.prefetch has no effect; the number of threads decides how many batches are prefetched",
        "fvjax/data/pipeline.py",
        "prefetch_buffer_size=max(threads, prefetch))",
        "prefetch_buffer_size=threads)",
        ("tests/test_config_keys.py::test_a_key_changes_what_it_is_there_for[data.prefetch-0]",),
    ),
    Fault(
        "predict_visual_float16",
        "pair_answer stores visual tokens on disk as float16, whatever config.dtype is",
        "fvjax/tasks/pair_answer.py",
        'np.memmap(file, self.dtype, "w+"',
        'np.memmap(file, np.float16, "w+"',
        ("tests/test_config_keys.py::test_a_key_changes_what_it_is_there_for[dtype-3]",),
    ),
    Fault(
        "prompts_shortest_added_first",
        "of two added tokens with the same beginning, the tokenizer takes the shorter and splits the rest into pieces",
        "fvjax/data/tokenizers/internlm2.py",
        "longest_first = sorted(self.added, key=len, reverse=True)",
        "longest_first = sorted(self.added, key=len)",
        ("tests/test_prompts.py::test_the_longest_added_token_wins",),
    ),
    Fault(
        "align_nearest_axes",
        "the centre of a photograph is computed as (h/2, w/2) instead of (w/2, h/2), so another face may be "
        "chosen in one that is not square",
        "fvjax/data/alignment/detectors.py",
        "middle = np.array(photograph.shape[1::-1]) / 2",
        "middle = np.array(photograph.shape[:2]) / 2",
        ("tests/test_align.py::test_the_nearest_face_is_chosen_not_the_largest_or_surest",),
    ),
    Fault(
        "train_vote_of_process_0",
        "only process 0 decides when to save and stop, so a signal to another process does not stop the run",
        "fvjax/training/agreement.py",
        "jnp.max(wanted) + 0 * step",
        "wanted[0] + 0 * step",
        ("tests/test_agreement.py::test_the_highest_priority_action_of_all_processes_counts",),
    ),
    Fault(
        "contrastive_group_of_pairs",
        "compat.negatives_group counts pairs instead of images, so groups are twice as large as configured",
        "fvjax/losses/contrastive.py",
        "groups = embeddings.reshape(-1, group, embeddings.shape[-1])",
        "groups = embeddings.reshape(-1, 2 * group, embeddings.shape[-1])",
        ("tests/test_precision.py::test_contrastive_loss_of_half_precision_embeddings[67108864-8]",),
    ),
    Fault(
        "layers_softmax_half",
        "the softmax of attention is computed in the model's dtype (attention xla, and the decoder with a cache "
        "or for the last token)",
        "fvjax/models/layers.py",
        "jax.nn.softmax(logits).astype(v.dtype)",
        "jax.nn.softmax(logits.astype(v.dtype))",
        ("tests/test_precision.py::test_softmax_of_large_logits[xla-True]",),
    ),
    Fault(
        "store_digest_without_identity",
        "a record's digest omits the identity's name, so data_hash does not change when images are relabelled",
        "fvjax/data/stores/shards.py",
        "    parts = [jpeg, identity.encode(), source.encode()]\n",
        "    parts = [jpeg, source.encode()]\n",
        ("tests/test_store.py::test_data_hash_is_of_the_contents_in_order",),
    ),
    Fault(
        "folds_genuine_weight_squared",
        "in the vertex bootstrap, a genuine pair has the square of its identity's multiplicity as weight",
        "fvjax/evals/folds.py",
        "weights = weights[:, identities[0]] * np.where(labels, np.int32(1), weights[:, identities[1]])",
        "weights = weights[:, identities[0]] * weights[:, identities[1]]",
        ("tests/test_folds.py::test_a_genuine_pair_weighs_its_identity_once",),
    ),
    Fault(
        "run_state_moments_replicated",
        "optimizer state is replicated on every device although its parameter is sharded, if the parameter's path "
        "is long",
        "fvjax/training/model.py",
        "for start in range(len(keys)):",
        "for start in range(2):",
        ("tests/test_optim.py::test_moments_live_where_their_parameters_live",),
    ),
    Fault(
        "evaluate_other_naming_comparable",
        "seen identities are looked for in a benchmark although its naming differs from that of the training data",
        "fvjax/tasks/benchmarks.py",
        "comparable = seen and benchmark.names and benchmark.names == self.data.names",
        "comparable = seen and benchmark.names",
        ("tests/test_run_files.py::test_results_say_which_pairs_and_people_and_data",),
    ),
    Fault(
        "pipeline_num_steps_is_end",
        "num_steps is read as the last step, so a run of T steps resumed at step s gets the batches s … T - s only",
        "fvjax/data/pipeline.py",
        "grain.MapDataset.source(range(start_step, start_step + num_steps)).map(load)",
        "grain.MapDataset.source(range(start_step, max(start_step, num_steps))).map(load)",
        ("tests/test_pipeline.py::test_resuming_continues_the_same_sequence[identities]",),
    ),
    Fault(
        "train_grad_norm_of_updates",
        "grad_norm in metrics.jsonl is the norm of the optimizer's updates, after clipping and the learning rate",
        "fvjax/training/step.py",
        '"grad_norm": optax.global_norm(grads),',
        '"grad_norm": optax.global_norm(updates),',
        ("tests/test_accumulation.py::test_what_a_step_says_of_its_gradient_is_before_clipping_and_the_rate",),
    ),
    Fault(
        "pairs_seed_plus_epoch",
        "an epoch's plan is seeded with seed + epoch, so seed 1 equals seed 0 one epoch later",
        "fvjax/data/plans.py",
        "np.random.SeedSequence([self.seed, epoch])",
        "np.random.SeedSequence([self.seed + epoch])",
        ("tests/test_pairs.py::test_epochs_and_seeds_differ_and_cover_the_same_counts",),
    ),
    Fault(
        "distributed_peer_code",
        "a process that ends because another one ended exits with 69 instead of the other's exit code",
        "fvjax/parallel/distributed.py",
        '_exit(int(code), f"process {i} ({self.processes[i]}) ended: {text}")',
        '_exit(PEER_LOST, f"process {i} ({self.processes[i]}) ended: {text}")',
        ("tests/test_agreement.py::test_who_ended_well_is_not_missed_and_who_did_not_ends_the_others",),
    ),
    Fault(
        "export_alpha_is_scale",
        "lora_alpha in the exported adapter_config.json is alpha / rank, so PEFT scales by alpha / rank^2",
        "fvjax/export.py",
        "write_adapters(dst, adapters, config.lora.alpha, ",
        "write_adapters(dst, adapters, config.lora.alpha / config.lora.rank, ",
        ("tests/test_export.py::test_adapters_of_a_run",),
    ),
    Fault(
        "recordio_numbers_after_damage",
        "stray bytes in one block are not counted, so record numbers in all later blocks are too small",
        "fvjax/data/readers/recordio/scanner.py",
        "            record_count += len(rows) + int(block.stray.sum())\n",
        "            record_count += len(rows)\n",
        ("tests/test_reader_edges.py::test_bytes_of_no_record_have_a_number_of_their_own_in_whatever_block[16]",),
    ),
    Fault(
        "peft_rslora_taken",
        "adapters with use_rslora are accepted and scaled by alpha / r instead of alpha / sqrt(r)",
        "weights_convert/peft.py",
        'VARIANTS = ("use_dora", "use_rslora", ',
        'IGNORED_NOW = ("use_rslora",)\nVARIANTS = ("use_dora", ',
        ("tests/test_convert.py::test_ranks_and_alphas_by_module",),
    ),
    Fault(
        "vit_drop_path_keys_shared",
        "a layer's MLP branch and the next layer's attention branch share a drop-path key",
        "fvjax/models/vision_transformer.py",
        "(keys, 2 * index + i)",
        "(keys, index + i)",
        ("tests/test_lora.py::test_a_layers_mlp_and_the_next_layers_attention_drop_independently",),
    ),
    Fault(
        "internvit_select_layer_section",
        "select_layer is read from vision_config, which does not have it, so the tower's last layer is always used",
        "weights_convert/internvit.py",
        '_tower(vision, chat.get("select_layer", -1))',
        '_tower(vision, (chat.get("select_layer", -1), vision.get("select_layer", -1))[1])',
        (
            "tests/test_checkpoint_options.py::test_a_key_that_is_used_changes_its_attributes_and_no_others[InternVL-select_layer]",
        ),
    ),
    Fault(
        "prepare_folder_fallback_fails",
        "prepare folder with --policy=fallback stops at the first broken file instead of leaving it out",
        "fvjax/data/readers/folders.py",
        'drop=policy != "fail", crop=next(crops))',
        'drop=policy == "drop", crop=next(crops))',
        ("tests/test_after_damage.py::test_crops_are_of_their_own_photographs[the first-fallback]",),
    ),
    Fault(
        "verification_flip_upside_down",
        "flip_sum adds the embedding of the face upside down instead of mirrored",
        "fvjax/evals/verification.py",
        "np.ascontiguousarray(faces[:, :, ::-1])",
        "np.ascontiguousarray(faces[:, ::-1])",
        ("tests/test_evals_edges.py::test_a_mirrored_face_is_mirrored_over_its_whole_width",),
    ),
    Fault(
        "metrics_board_purges_all",
        "TensorBoard's restart event has no step, so a restart hides all earlier steps",
        "fvjax/training/metrics.py",
        "self.event(wall_time=time.time(), step=step, session_log=start)",
        "self.event(wall_time=time.time(), session_log=start)",
        ("tests/test_run_files.py::test_tensorboard_shows_the_figures_of_metrics_at_their_steps",),
    ),
    # ---- written by an author who had not seen the tests, and tried after the tests were finished
    Fault(
        "train_epoch_off_by_one",
        "the progress line of an epoch's last step names the next epoch",
        "fvjax/training/reporter.py",
        "number = step // self.work.steps_per_epoch + 1",
        "number = (step + 1) // self.work.steps_per_epoch + 1",
        ("tests/test_run_files.py::test_the_line_of_an_epoch_is_its_last_steps",),
    ),
    Fault(
        "baselines_mean_of_batch",
        "the raw-pixel baseline subtracts the mean face of the batch instead of each face's own mean",
        "fvjax/evals/baselines.py",
        "flat.mean(1, keepdims=True)",
        "flat.mean(0, keepdims=True)",
        ("tests/test_verification.py::test_baselines_by_hand",),
    ),
    Fault(
        "profiling_operations_of_all_steps",
        "the column 'operations' counts the operations of all traced steps instead of one step",
        "fvjax/training/profiling.py",
        'f"{len(times) / steps:,.0f}"',
        'f"{len(times):,.0f}"',
        ("tests/test_plan_figures.py::test_the_profile_lists_the_modules_that_took_longest_first",),
    ),
    Fault(
        "code_version_top_folder",
        "code_version hashes the files directly in fvjax/ only, not those in its sub-folders",
        "fvjax/__init__.py",
        'root.glob("fvjax/**/*.py")',
        'root.glob("fvjax/*.py")',
        ("tests/test_hashes.py::test_other_code_has_another_version[a file in a folder]",),
    ),
    Fault(
        "verify_flip_sum_of_config",
        "verify scores with the flip_sum of config.json instead of that of the evaluation whose threshold it uses",
        "fvjax/verify.py",
        'flip_sum = results.get("flip_sum", network.run.config.eval.flip_sum) if network.run else False',
        "flip_sum = network.run.config.eval.flip_sum if network.run else False",
        ("tests/test_verify.py::test_scores_and_threshold_are_the_evaluations[flipped]",),
    ),
    Fault(
        "evaluate_curve_line_twice",
        "evaluations.jsonl keeps the old line of a step that is evaluated again",
        "fvjax/training/validation.py",
        "files.keep_before(path, step)\n",
        "files.keep_before(path, step + 1)\n",
        ("tests/test_run_files.py::test_evaluations_has_each_epochs_figures_once",),
    ),
    Fault(
        "prepare_fta_without_no_face",
        "photographs without a detected face do not count as failures to acquire if their centre is used",
        "fvjax/data/readers/benchmarks.py",
        "failure_to_acquire=len((used - number.keys()) | used.intersection(no_face)),",
        "failure_to_acquire=len(used - number.keys()),",
        ("tests/test_command_flags.py::test_benchmarks_are_resized_and_aligned[lfw]",),
    ),
    Fault(
        "synthetic_grain_by_number",
        "the noise is seeded with the shot's number, so shot k of every person has the same noise",
        "fvjax/data/synthetic.py",
        '"grain": int(rng.integers(2**31)),',
        '"grain": number,',
        ("tests/test_synthetic.py::test_parameters_are_pinned",),
    ),
    Fault(
        "flops_dilated_zeros",
        "FLOPs include the zeros that the input gradient of a strided convolution inserts",
        "fvjax/planning/flops.py",
        '2 * macs // math.prod(eqn.params["lhs_dilation"])',
        "2 * macs",
        ("tests/test_arithmetic.py::test_flops_of_convolutions_and_their_gradients[2-1-kernel1]",),
    ),
    Fault(
        "checkpoint_base_hash_order",
        "the hash of the base depends on the order in which the file system lists its files",
        "fvjax/training/checkpoint.py",
        'files = sorted(p for p in Path(path).iterdir() if p.suffix == ".safetensors" or p.name == "config.json")',
        'files = [p for p in Path(path).iterdir() if p.suffix == ".safetensors" or p.name == "config.json"]',
        ("tests/test_hashes.py::test_the_hash_of_a_base_is_of_its_files_alone",),
    ),
    Fault(
        "run_state_base_wins",
        "where both the base and the config set drop_path, the base's value is used",
        "fvjax/training/model.py",
        "return {**theirs, **ours}",
        "return {**ours, **theirs}",
        ("tests/test_config_keys.py::test_the_rate_of_dropped_paths_is_the_bases_unless_the_config_has_one",),
    ),
    Fault(
        "run_state_lora_scale_inverted",
        "adapters are scaled by rank / alpha, which shows only where the two differ (in no shipped config)",
        "fvjax/training/model.py",
        'lora.scaled(trees.flatten(variables["lora"]), self.adapters.alpha / self.adapters.rank)',
        'lora.scaled(trees.flatten(variables["lora"]), self.adapters.rank / self.adapters.alpha)',
        ("tests/test_train.py::test_the_loss_is_of_the_adapted_model_at_the_configs_temperature",),
    ),
    Fault(
        "folds_ci_90",
        "ci95 holds the 90% interval",
        "fvjax/evals/folds.py",
        "np.percentile(sample, [2.5, 97.5])",
        "np.percentile(sample, [5, 95])",
        ("tests/test_folds.py::test_intervals_hold_the_truth_when_pairs_share_persons",),
    ),
    Fault(
        "lora_gate_only_all_layers",
        "the dead-adapter check reports a stack only if all of its layers are dead",
        "fvjax/models/lora.py",
        "            if layers.any():\n",
        "            if layers.all():\n",
        ("tests/test_low_rank.py::test_the_dead_are_named_by_half_step_and_layer",),
    ),
    Fault(
        "verification_half_seen_is_unseen",
        "identity_disjoint keeps pairs of which one identity was trained on",
        "fvjax/evals/verification.py",
        "np.isin(pairs.identity_a, list(seen)) | np.isin(pairs.identity_b, list(seen))",
        "np.isin(pairs.identity_a, list(seen)) & np.isin(pairs.identity_b, list(seen))",
        ("tests/test_evals_edges.py::test_a_fold_without_unseen_pairs_of_one_kind_is_left_out",),
    ),
    Fault(
        "decoder_cache_counts_padding",
        "the cache's length includes right padding, so later tokens attend to padding and have wrong positions",
        "fvjax/models/decoder.py",
        "start + (x.shape[1] if lengths is None else lengths)",
        "start + x.shape[1]",
        ("tests/parity/test_decoder.py::test_cache_with_rows_of_different_length",),
    ),
    Fault(
        "api_p_same_swapped",
        "p_same(a, b) passes b to the model before a",
        "fvjax/api.py",
        "encoder.answer(variables, a, b, encoder.yes_no)",
        "encoder.answer(variables, b, a, encoder.yes_no)",
        ("tests/test_api_batches.py::test_any_number_of_faces_in_their_order[1]",),
    ),
    Fault(
        "stage_by_last_name",
        "a staged copy is named after the last folder of a store's path, so data/a/faces and data/b/faces collide",
        "launch/stage.py",
        'dst = to / store.absolute().relative_to("/")',
        "dst = to / store.name",
        ("tests/test_launch.py::test_stores_of_the_config_are_copied_and_named",),
    ),
    Fault(
        "folds_tar_below_far",
        "TAR at FAR X uses the lowest threshold with FAR < X instead of <= X (for 1e-1 of 3,000 impostors, 299 "
        "instead of 300)",
        "fvjax/evals/folds.py",
        "index = (np.sum(far <= target + 1e-9, -1) - 1)[:, None]",
        "index = (np.sum(far < target, -1) - 1)[:, None]",
        ("tests/test_evals_edges.py::test_at_exactly_a_far_the_threshold_that_has_it_is_taken",),
    ),
    Fault(
        "write_without_added_tokens",
        "conversion and export do not copy added_tokens.json",
        "weights_convert/write.py",
        "special_tokens_map|added_tokens|vocab",
        "special_tokens_map|vocab",
        ("tests/test_convert.py::test_whole_internvl_round_trip_is_exact",),
    ),
    Fault(
        "llama_rope_theta_of_parameters",
        "rope_parameters.rope_theta is ignored if the config also has rope_theta (for LLaMA, also the default 10,000)",
        "weights_convert/llama.py",
        'theta = scaling.get("rope_theta", options.get("rope_theta", theta))',
        'theta = options.get("rope_theta", scaling.get("rope_theta", theta))',
        ("tests/test_checkpoint_options.py::test_rope_is_read_in_every_spelling[default]",),
    ),
    Fault(
        "bin_fta_counts_repeats",
        "failure_to_acquire of a .bin counts a broken image once for every pair that repeats it",
        "fvjax/data/readers/insightface_bin.py",
        "failure_to_acquire=len(reasons),",
        "failure_to_acquire=len(writer.rejected),",
        ("tests/test_insightface_bin.py::test_rejections_are_counted_and_located",),
    ),
    Fault(
        "needs_cpu_memory_undivided",
        "every CPU device is assumed to have the memory of the whole machine",
        "fvjax/planning/programs.py",
        'os.sysconf("SC_PHYS_PAGES") // len(local)',
        'os.sysconf("SC_PHYS_PAGES")',
        ("tests/test_plan_figures.py::test_a_devices_memory_is_its_allocators_or_its_share_of_the_machines",),
    ),
    Fault(
        "vit_pool_half",
        "the mean over patch tokens is rounded to the model's dtype before it becomes float32",
        "fvjax/models/vision_transformer.py",
        "return tokens[:, 1:].astype(jnp.float32).mean(axis=1)",
        "return tokens[:, 1:].mean(axis=1).astype(jnp.float32)",
        ("tests/test_precision.py::test_pooling_of_many_patches[mean]",),
    ),
    Fault(
        "recordio_plan_without_options",
        "plan.json omits --top, --val, --seed and --resize, so a conversion continues from shards of other options",
        "fvjax/data/readers/recordio/conversion.py",
        "plan = json.dumps({**options, **sizes,",
        "plan = json.dumps({**sizes,",
        ("tests/test_recordio.py::test_what_is_kept_is_of_the_same_source_and_options",),
    ),
    Fault(
        "cpu_conv_winograd_in_half",
        "wide convolutions on a CPU use Winograd's method in bfloat16 too, which rounds its sums of inputs",
        "fvjax/models/cpu_conv.py",
        "work >= WORK and x.dtype == jnp.float32 and min(",
        "work >= WORK and min(",
        ("tests/test_cpu_conv.py::test_fewer_products[bfloat16-16-256-1]",),
    ),
    Fault(
        "images_exif_behind_jfif",
        "EXIF is read from the first segment only, so an orientation after a JFIF header is ignored",
        "fvjax/data/images.py",
        'if b"Exif\\0\\0" not in jpeg:',
        'if b"Exif\\0\\0" not in jpeg[:12]:',
        ("tests/test_image_edges.py::test_exif_turns_photographs_and_faces_alike[3]",),
    ),
    Fault(
        "plan_steps_by_images",
        "plan divides pairs_per_epoch by the images per step, so it shows half as many steps and hours",
        "fvjax/plan.py",
        "task.steps_per_epoch(batch_size // task.images_per_example)",
        "task.steps_per_epoch(batch_size)",
        ("tests/test_plan_figures.py::test_steps_of_an_epoch_are_told_or_follow_from_images_or_pairs",),
    ),
    Fault(
        "local_signal_exit_code",
        "if a signal ended a process, the exit code is 128 minus the signal's number instead of 128 plus",
        "launch/local.py",
        "return code if code >= 0 else 128 - code",
        "return code if code >= 0 else 128 + code",
        ("tests/test_local.py::test_no_more_restarts_than_allowed[os.kill(os.getpid(), signal.SIGKILL)-137]",),
    ),
)


def broken(fault: Fault, text: str) -> str:
    """Return the file's text with the fault. Raises ValueError unless the old text occurs exactly once."""
    if (count := text.count(fault.old)) != 1:
        raise ValueError(
            f"{fault.name}: the list is out of date, {fault.file} has {fault.old!r} {count} times instead of once; "
            "correct tests/mutations.py"
        )
    return text.replace(fault.old, fault.new)


def copy_project(to: Path) -> None:
    """Copy the working tree as git sees it: tracked files, and new files that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in listed.split("\0"):
        if file and (ROOT / file).is_file():
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, to / file)


def pytest(tests: list[str], folder: Path) -> tuple[int, str]:
    """Run the tests in the copy and return the exit code (124 after half an hour) and the output."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # a cached module could hide a fault of equal length
    data = ROOT.parent / "shared" / "data"
    if "FVJAX_DATA" not in env and data.is_dir():
        env["FVJAX_DATA"] = str(data)
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-x", "-q", "-rfEs", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        return 124, "more than half an hour"
    return done.returncode, done.stdout + done.stderr


def judge(code: int, output: str) -> tuple[bool, str]:
    """Return whether the fault was caught, and the test that caught it or the reason why not."""
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
    if code == 1 and failed:
        return True, failed[0]
    if skipped := re.findall(r"^SKIPPED \[\d+\] (.+)$", output, re.MULTILINE):
        return False, f"not judged, its tests were skipped here: {skipped[0]}"
    if code == 0:
        return False, "SURVIVED: every test passed"
    return False, f"no test failed, but pytest ended with {code}: {(output.strip().splitlines() or ['no output'])[-1]}"


def table(caught: dict[str, str], missed: list[str], before: str) -> str:
    """Return the text of tests/MUTATIONS.md. Faults that were not run now keep their row of the text `before`."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", ".", ":!tests/MUTATIONS.md") else ""
    now = f"{git('show', '-s', '--format=%cs %h', 'HEAD')}{changed}"
    row = r"^\| (\w+) \| .* \| `[^`]+` \| (`[^`]+` \| [^|]+) \|$"  # not of a row that says "not run yet"
    known = dict(re.findall(row, before, re.MULTILINE))
    known |= {name: f"`{test.removeprefix('tests/')}` | {now}" for name, test in caught.items()}
    known |= dict.fromkeys(missed, f"**nothing** | {now}")
    rows = [f"| {f.name} | {f.breaks} | `{f.file}` | {known.get(f.name, 'not run yet |')} |" for f in FAULTS]
    return HEAD.format(count=len(FAULTS)) + "\n".join([*rows, ""])


HEAD = """# Seeded faults and the tests that catch them

Written by `python tests/mutations.py --write`, which puts {count} faults into a copy of the project, one at a time.
Each row names the first test that failed and the commit at which it failed (+: with uncommitted changes).
`--only=NAME --write` updates one row.

| fault | what it breaks | in | caught by | at |
|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutations.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=[f.name for f in FAULTS], metavar="NAME", help="one fault")
    parser.add_argument("--write", action="store_true", help="record the results in tests/MUTATIONS.md")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if not options.only or f.name in options.only]
    console = Console()
    done: dict[str, str] = {}
    missed: list[str] = []
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with tempfile.TemporaryDirectory(prefix="fvjax-mutations-") as folder:
        copy = Path(folder) / "fvjax"
        copy_project(copy)
        sound = {f.name: (copy / f.file).read_text() for f in chosen}
        try:
            faulty = {f.name: broken(f, sound[f.name]) for f in chosen}
        except ValueError as error:
            console.print(f"error: {error}", markup=False)
            return 2
        with Progress(TextColumn("{task.description}"), *columns, console=console, speed_estimate_period=900) as bar:
            task = bar.add_task("without a fault", total=len(chosen) + 1)
            code, output = pytest(sorted({test for f in chosen for test in f.tests}), copy)
            if code:
                bar.console.print(output[-3000:], markup=False)
                bar.console.print(f"error: the tests fail without any fault (pytest ended with {code})", markup=False)
                return 2
            for fault in chosen:
                bar.update(task, advance=1, description=fault.name)
                (copy / fault.file).write_text(faulty[fault.name])
                caught, by = judge(*pytest(list(fault.tests), copy))
                (copy / fault.file).write_text(sound[fault.name])
                if caught:
                    done[fault.name] = by
                else:
                    missed.append(fault.name)
                verdict = f"{'caught' if caught else 'MISSED'}  {fault.name}: {by}"
                bar.console.print(verdict, markup=False, soft_wrap=True)
                if options.write:
                    page = ROOT / "tests/MUTATIONS.md"
                    page.write_text(table(done, missed, page.read_text() if page.exists() else ""))
            bar.update(task, advance=1, description="done")
    console.print(f"{len(done)} of {len(chosen)} faults caught")
    if missed:
        console.print(f"error: not caught: {', '.join(missed)}; add or strengthen a test", markup=False)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
