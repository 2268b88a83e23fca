"""Test that every config can be built, that one of its steps can be traced, and that its parameter count is right."""

import importlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import jax
import pytest

from fvjax import checks, main, runtime, tasks, trees
from fvjax.config import Config, base, differences, experiments, typed
from fvjax.models import presets
from fvjax.parallel import sharding
from fvjax.planning import programs
from fvjax.training.model import open_model

MS1M = 85_760 * 512  # a head of 85,742 classes, padded to a multiple of 128


def _of_tower(trained: int) -> tuple:
    return 304_012_288 + trained, trained, None


# name: (parameters, trained parameters, model GFLOP per step and image or None)
# IResNet-50 43,590,848 and InternViT-300M 304,012,288 + 1,966,080 are the published models' own counts; the small
# networks' are those of the PyTorch twin (tests/reference/iresnet_torch.py).
EXPECTED = {
    "quickstart:resnet": (463_348, 463_220, None),
    "quickstart:vit_frozen": (877_952, 0, None),  # 75,392 + 128 + 8,320 + 4 x 198,528
    "quickstart:vit_lora": (877_952 + 65_536, 65_536, None),
    # the tower, 83,200 of the projector, 311,936 of the decoder; adapters as in vit_lora, and 2 x 3 x 8 x (128 + 256)
    "quickstart_mllm:mllm_frozen": (877_952 + 83_200 + 311_936, 0, None),
    "quickstart_mllm:mllm_lora": (1_273_088 + 83_968, 83_968, None),
    "quickstart_mllm:pair_lora": (1_273_088 + 83_968, 83_968, None),
    "small_real": (2_308_352, 2_308_096, None),
    # with a head of 324 classes, padded to 384, and 256 features; 200 padded to 256, and 128 features
    "small_real_arcface": (2_308_352 + 384 * 256, 2_308_096 + 384 * 256, None),
    "quickstart_margins:infonce": (463_348, 463_220, None),
    **{
        f"quickstart_margins:{row}": (463_348 + 256 * 128, 463_220 + 256 * 128, None)
        for row in ("arcface", "cosface", "adaface")
    },
    "resnet50_infonce": (43_590_848, 43_590_336, 37.8),
    "standard_suite": (43_590_848, 0, None),
    "resnet50_arcface": (43_590_848 + MS1M, 43_590_336 + MS1M, None),
    "adaface_r50": (43_590_848 + MS1M, 43_590_336 + MS1M, None),
    "resnet100_arcface_pfc": (65_156_160 + MS1M, 65_155_648 + MS1M, None),
    "vit_lora_arcface": (305_978_368 + 85_760 * 1024, 1_966_080 + 85_760 * 1024, None),
    "mllm_lora_arcface": (2_213_618_688 + 85_760 * 2048, 7_864_320 + 85_760 * 2048, None),
    "vit_frozen": (304_012_288, 0, None),
    "vit_lora": (305_978_368, 1_966_080, 1544),
    # adapters on the tower: rank x 24 x (1024 + 3072 and 1024 + 1024), and the MLPs' 2 x (1024 + 4096)
    **{f"vit_lora_attention:attention_r{r}": _of_tower(r * 24 * 6144) for r in (4, 8, 16)},
    **{f"vit_lora_attention:both_r{r}": _of_tower(r * 24 * (6144 + 10240)) for r in (4, 8, 16)},
    # InternVL2-2B 2,205,754,368, its 120 adapters 7,864,320 (of these 48 in the tower), its projector 12,595,200
    "mllm_frozen": (2_205_754_368, 0, None),
    "mllm_lora": (2_213_618_688, 7_864_320, 3138),
    "mllm_lora_vit": (2_205_754_368 + 1_966_080, 1_966_080, None),
    "mllm_lora_llm": (2_205_754_368 + 5_898_240, 5_898_240, None),
    "mllm_lora_projector": (2_213_618_688, 7_864_320 + 12_595_200, None),
    "pair_frozen": (2_205_754_368, 0, None),
    "pair_lora": (2_213_618_688, 7_864_320, 3138),  # 6,277 a pair
    "pair_lora_llm": (2_205_754_368 + 5_898_240, 5_898_240, None),
    # the tower, 83,200 of the projector, of the decoder 3 x 196,864, two tables of 512 x 128 and a norm; adapters of
    # rank 16 on q, k, v, o, gate, up and down: 16 x 3 x 2,432
    "quickstart_chat:chat_frozen": (877_952 + 83_200 + 721_792, 0, None),
    "quickstart_chat:chat_lora": (1_682_944 + 116_736, 116_736 + 83_200, None),
    "quickstart_chat:chat_text_only": (1_682_944 + 116_736, 116_736 + 83_200, None),
    # the tower, 1,516,672 of the projector, SmolLM2 and, without its weights, a head beside the table of words;
    # adapters of rank 16 on seven modules: 16 x 30 x 10,176
    "small_chat:chat_frozen": (877_952 + 5_067_904 + 134_515_008 + 28_311_552, 0, None),
    "small_chat:chat_lora": (168_772_416 + 4_884_480, 877_952 + 5_067_904 + 4_884_480, None),
    "small_chat:chat_text_only": (168_772_416 + 4_884_480, 877_952 + 5_067_904 + 4_884_480, None),
    # InternVL3 by its presets, without the biases of q, k and v, which come with a checkpoint; adapters as published
    "facellm_1b": (938_193_024 - 24 * 1_152 + 8_798_208, 8_798_208, None),
    "facellm_text_only": (938_193_024 - 24 * 1_152 + 8_798_208, 8_798_208, None),
    **{f"facellm_ranks:rank_{r}": (938_165_376 + r * 549_888, r * 549_888, None) for r in (4, 8, 16, 32)},
    "facellm_8b": (7_944_244_736 + 40_370_176, 40_370_176, None),
    # Vicuna-7B 6,738,415,616, two towers of 23 layers 290,581,504 and 387,380,224, the projector 20,979,712; the
    # landmark tokens 1,155,072 (of which global 561,152) and the attention's four matrices 67,125,248
    "facellava_stage1": (7_437_357_056 + 68_280_320, 68_280_320, None),
    "facellava_stage2": (7_437_357_056 + 68_280_320, 6_759_395_328 + 68_280_320, None),
    "facellava_ablation:no_landmarks": (7_437_357_056, 6_759_395_328, None),
    "facellava_ablation:global_appended": (7_437_357_056 + 561_152, 6_759_395_328 + 561_152, None),
    # tower, projector and decoder of quickstart_chat; the adapter of 64 text features 24,832, that of maps as large as
    # the projector, and two graph convolutions 2 x 64 x 128
    "faceinsight_quickstart:org": (1_682_944 + 24_832, 83_200 + 24_832, None),
    "faceinsight_quickstart:maps": (1_682_944 + 24_832 + 83_200, 2 * 83_200 + 24_832, None),
    "faceinsight_quickstart:logic": (1_682_944 + 24_832 + 83_200 + 16_384, 2 * 83_200 + 24_832 + 16_384, None),
    # three layers of the tower, 12,416 of the projector, 172,352 of the decoder; 18,048 of landmark tokens, 4 x 4,160
    "facellava_quickstart:no_landmarks": (678_784 + 184_768, 184_768, None),
    "facellava_quickstart:facellava": (678_784 + 184_768 + 34_688, 184_768 + 34_688, None),
    "facellava_quickstart:shuffled_landmarks": (678_784 + 184_768 + 34_688, 184_768 + 34_688, None),
    "facellm_38b": (38_388_138_240 + 134_217_728, 134_217_728, None),
}


def test_all_configs_are_here():
    files = {p.stem for p in Path("configs").glob("*.py")} - {"__init__", "paper", "facellm", "facellava"}
    assert files == {name.split(":")[0] for name in EXPECTED}


def test_the_standard_suite_names_what_is_missing():
    suite = importlib.import_module("configs.standard_suite")
    config = suite.get_config()
    assert {key.rpartition(".")[2] for key, _ in config.prepare} == {"init_from", *suite.SETS}
    assert set(config.eval.benchmarks) == set(suite.SETS)
    some = typed(suite.get_config("agedb_30,rfw_asian"))
    model, agedb, rfw = checks.missing(some.required_paths, dict(some.prepare))
    assert model.startswith("config.init_from: data/resnet50 is not there. an IResNet, such as insightface's")
    assert agedb.endswith("prepare bin --src=faces_emore/agedb_30.bin --dst=data/agedb_30")
    assert rfw.endswith("prepare bin --folds=10 --name=rfw_asian --src=Asian_test.bin --dst=data/rfw_asian")
    with pytest.raises(ValueError, match="no set 'agedb'; there are lfw, cfp_ff"):
        suite.get_config("agedb")


def test_rows_are_experiments_of_their_own():
    config = importlib.import_module("configs.quickstart").get_config()
    config.batch_size = 8
    found = experiments(config, Path("runs/q"))
    assert list(found) == [
        Path("runs/q") / name for name in ("vit_frozen", "resnet", "vit_lora")
    ]  # a row that trains nothing first
    for where, row in found.items():
        alone = importlib.import_module("configs.quickstart").get_config(where.name)
        assert row.batch_size == 8, "what holds for all rows is taken from the config"
        assert {d.split(":")[0] for d in differences(row.to_dict(), typed(alone).to_dict())} == {"name", "batch_size"}
    config.rows.vit_lora.optimizer.lrr = 1
    with pytest.raises(ValueError, match=r"rows\.vit_lora.*lrr"):
        experiments(config, Path("runs/q"))


def without_weights(config):
    """Return the typed config with a randomly initialised model, so that no pretrained weights are opened."""
    return typed(config).replace({"init_from": "", "init_parts": {}})


@pytest.mark.parametrize("name", EXPECTED)
def test_config(name):
    file, *row = name.split(":")
    config = importlib.import_module(f"configs.{file}").get_config(*row)
    typed(config).check()
    tasks.get(config.task).check(typed(config))
    if config.prompt.text:  # from InternLM2's tokenizer, which is not part of the project
        ids = json.loads(Path("tests/golden/internlm2_tokenizer.json").read_text())["encode"]
        config.prompt.update({"ids": tuple(ids[config.prompt.text]), "text": "", "yes_no_ids": (9583, 2917)})
    config = without_weights(config)
    program = programs.Planner(config, sharding.one_device()).program(reference=False)
    state, frozen, _ = program.arguments
    size = {k: sum(x.size for x in trees.flatten(v).values()) for k, v in (("t", state.trainable), ("f", frozen))}
    counts = (size["t"] + size["f"], size["t"])
    expected = EXPECTED[name]
    assert counts == expected[:2]
    if not config.trains:
        return
    new, values = jax.eval_shape(program.step, *program.arguments)
    counted = {"tokens", "label_tokens"} if config.task in ("conversation", "face_instruction") else set()
    assert set(values) == {"loss", "lr", "grad_norm"} | counted | ({"dead"} if config.lora.rank else set())
    assert {k: v.shape for k, v in trees.flatten(new.trainable).items()} == {
        k: v.shape for k, v in trees.flatten(state.trainable).items()
    }
    if expected[2]:  # counted without accumulation: GradCache's first forward pass is not the model's own arithmetic
        per_image = programs.Planner(config, sharding.one_device()).model_flops() / config.batch_size / 1e9
        assert per_image == pytest.approx(expected[2], rel=0.02)


def test_a_frozen_base_can_be_kept_in_parts():
    config = importlib.import_module("configs.mllm_lora").get_config()
    config.prompt.update({"ids": (1, 2), "text": ""})
    config = without_weights(config)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2}, jax.devices()[:8])
    model = open_model(config, tasks.get(config.task)(config, Path()), mesh)
    variables = jax.eval_shape(model.init, model.key)
    leaves = trees.flatten({"params": variables["params"]})
    here = sum(math.prod(model.shardings[n].shard_shape(x.shape)) for n, x in leaves.items())
    assert here < 0.17 * sum(x.size for x in leaves.values()), "1/8 of the matrices, 1/4 of the words and of q, k, v"


def test_a_cpu_gets_as_many_devices_as_a_part_of_the_batch_divides_by(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    config = typed(base()).replace({"batch_size": 16, "eval.batch_size": 8})
    assert runtime.cpu_devices(main.batches([config]), 1) == 4
    config = config.replace({"accumulation": 4})  # two pairs a part
    assert runtime.cpu_devices(main.batches([config]), 1) == 2


def test_the_defaults_of_the_config_are_the_named_presets():
    model = Config().model
    tower, decoder = asdict(model.vision_transformer), asdict(model.decoder)
    assert {k: v for k, v in tower.items() if v is not None} == presets.internvit_300m()
    assert decoder == {k: v for k, v in presets.internlm2_1_8b().items() if k in decoder}
    assert asdict(model.iresnet) == presets.iresnet50() | {"dropout": 0.0, "conv_init": "normal"}
    assert asdict(model.projector) | {"width": model.decoder.width} == presets.internvl2_2b()["projector"]
