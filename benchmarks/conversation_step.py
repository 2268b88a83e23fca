"""Compare a training step on conversations with transformers and peft: same weights, batch and precision, in turn.

    python benchmarks/conversation_step.py --case=chat_100m [--against eager compiled best] [--rounds=3] [--steps=2]
                                           [--batch=4] [--tokens=N] [--threads=2] [--json=FILE]
                                           [--precision=float32|bfloat16]
    python benchmarks/conversation_step.py --case=smollm2 --weights=DIR    DIR as docs/smollm2.md makes it

    chat_100m   an InternVL3 of 108 million parameters with random weights: a picture of 448 pixels in each row
    smollm2     SmolLM2-135M-Instruct on text alone. fvjax needs a tower; it gets one of a single small layer

A step is forward, cross-entropy of the second half of every row's tokens, backward, clipping and AdamW of rank-8
adapters on all seven matrices of every decoder layer; the rest is frozen. The programs of transformers use its sdpa
attention:

    eager       peft's model as transformers' Trainer calls it: model(…, labels=…).loss
    compiled    the same with every layer compiled by torch.compile
    best        compiled layers, and logits of the positions with a label only, as fvjax computes them

In bfloat16 the frozen weights are bfloat16, the adapters float32, and peft's programs run under autocast.

Every program runs in its own process with --threads threads and cores; the processes take turns, A B C … A B C …, so
that their turns are seconds apart. The losses of the first three steps must agree, which covers gradients and updates.

    time    median of the steps of a turn, then median over rounds, with (lowest to highest) of the rounds
    ratio   median over rounds of transformers / fvjax
    CPU     seconds of all threads per step; other programs change them less than the time. Torch's threads count while
            they wait for each other
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import cases, step_time

TINY = Path(__file__).parent.parent / "tests/golden/internvl3_tiny/hf/config.json"
VOCABULARY, PICTURE, SIZE = 8000, 448, 14  # the VLM's vocabulary; pixels of a picture and of a patch
CHAT_100M = {
    "vision": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048},
    "text": {
        "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4,
        "intermediate_size": 3072, "vocab_size": VOCABULARY,
    },
}  # fmt: skip
TOKENS = {"chat_100m": 512, "smollm2": 256}  # of each row, the picture's included
RANK, ALPHA, RATE, CLIP = 8, 16, 1e-4, 1.0
TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\..*_proj", r".*layers\.\d+\.(self_attn|mlp)\..*_proj"
PROGRAMS = ("eager", "compiled", "best")  # of transformers
CLOSE = {"float32": 1e-4, "bfloat16": 3e-2}  # relative tolerance of losses
COMPARED = 3  # steps whose losses are compared
LABELS = -100  # transformers' label of a position that does not count


def picture_tokens(case: str) -> int:
    """Return the number of visual tokens at the start of a row."""
    return (PICTURE // SIZE // 2) ** 2 if case == "chat_100m" else 0


def conversations(case: str, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids [rows, tokens], and the same with LABELS where no loss is taken: in the first half."""
    ids = np.random.default_rng(0).integers(100, VOCABULARY - 1, (rows, tokens))
    ids[:, : picture_tokens(case)] = VOCABULARY - 1
    return ids, np.where(np.arange(tokens) < tokens - tokens // 2, LABELS, ids)


def pictures(rows: int) -> np.ndarray:
    """Return a picture for each row, uint8 [rows,448,448,3]."""
    return np.random.default_rng(1).integers(0, 256, (rows, PICTURE, PICTURE, 3), np.uint8)


# ---- fvjax


def our_config(options: argparse.Namespace) -> Any:
    """Return the config of a case, as a config file would: a ConfigDict."""
    from configs.facellm import ADAPTERS_PER_LAYER
    from fvjax.config import base
    from weights_convert import open_checkpoint

    c = base()
    c.task, c.model.kind, c.batch_size, c.data.flip = "conversation", "vlm", options.batch, False
    c.chat.tokenizer, c.chat.length = "fvjax/pretrained/tiny_chat", options.tokens
    if options.case == "smollm2":
        c.init_parts.decoder = str(options.weights)
        tower = {"image_size": 28, "patch_size": SIZE, "width": 8, "depth": 1, "heads": 1, "mlp_dim": 8}
        parts = {"vision": tower, "decoder": open_checkpoint(options.weights, "decoder").model_config}
    else:
        c.init_from = str(options.weights)
        parts = open_checkpoint(options.weights, "vlm").model_config
        c.model.bos = parts["bos"]
    for section, part in (("vision_transformer", "vision"), ("projector", "projector"), ("decoder", "decoder")):
        c.model[section].update({key: value for key, value in parts.get(part, {}).items() if key in c.model[section]})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.lora.update({"rank": RANK, "alpha": float(ALPHA), "targets": ("decoder/blocks/(attn|mlp)/.*",)})
    c.lora.count = ADAPTERS_PER_LAYER * c.model.decoder.depth
    c.optimizer.update({"name": "adamw", "lr": RATE, "weight_decay": 0.0, "clip": CLIP, "schedule": "constant"})
    c.dtype = c.base_dtype = options.precision
    return c


def our_batch(case: str, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Return the batch as fvjax reads it; a picture that a row does not have is beyond its end."""
    ids, labels = conversations(case, rows, tokens)
    following = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=LABELS)
    visual = picture_tokens(case)
    places = np.tile(np.arange(visual), (rows, 1)) if visual else np.full((rows, 1), tokens)
    return {
        "tokens": ids.astype(np.int32),
        "targets": np.where(following == LABELS, -1, following).astype(np.int32),
        "segments": np.zeros((rows, tokens), np.int32),
        "tiles": pictures(rows)[:, None] if visual else np.zeros((rows, 1, 28, 28, 3), np.uint8),
        "places": places.astype(np.int32),
        "index": np.arange(rows, dtype=np.int32),
    }


def our_steps(options: argparse.Namespace) -> Iterator[float]:
    """Run training steps on one batch, over and over, and yield the loss of each."""
    import jax

    from fvjax import runtime, trees
    from fvjax.parallel import sharding
    from fvjax.training.state import TrainState
    from fvjax.training.step import train_step
    from weights_convert import read_adapters

    jax.config.update("jax_platforms", "cpu")
    runtime.set_up_devices([options.batch], 1)
    _, mesh, recipe, state, frozen = cases.started(our_config(options))
    part = "decoder" if options.case == "smollm2" else "vlm"
    adapters, _ = read_adapters(options.adapters, options.weights, part)
    prefix = "decoder/" if part == "decoder" else ""
    given = trees.unflatten({f"lora/{prefix}{name}": leaf for name, leaf in adapters.items()})
    trainable = jax.tree.map(lambda old, new: jax.device_put(new, old.sharding), state.trainable, given)
    state = TrainState(state.opt, state.stats, state.step, trainable)
    shardings = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
    batch = sharding.batch(our_batch(options.case, options.batch, options.tokens), mesh)
    step = jax.jit(partial(train_step, recipe), donate_argnums=0, out_shardings=shardings)
    while True:
        state, values = step(state, frozen, batch)
        yield float(values["loss"])


# ---- transformers and peft


def write_weights(path: Path) -> None:
    """Write the random VLM, as transformers initialises it."""
    import torch
    import transformers

    config = json.loads(TINY.read_text())
    config["vision_config"] |= CHAT_100M["vision"] | {"image_size": [PICTURE, PICTURE]}
    config["text_config"] |= CHAT_100M["text"]
    config |= {"image_seq_length": picture_tokens("chat_100m"), "image_token_id": VOCABULARY - 1}
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig.from_dict(config))
    model.save_pretrained(path)


def adapted(case: str, weights: Path, dtype: Any) -> Any:
    """Return transformers' model in dtype with new adapters of peft's."""
    import peft
    import transformers

    kind = transformers.AutoModelForCausalLM if case == "smollm2" else transformers.AutoModelForImageTextToText
    model: Any = kind.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa")
    targets = TARGETS[case == "smollm2"]
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))


def write_adapters(case: str, weights: Path, adapters: Path) -> None:
    """Write adapters in which b is not zero, so that every gradient matters from the first step."""
    import torch

    torch.manual_seed(1)
    model = adapted(case, weights, torch.float32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(adapters)


def their_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the batch as transformers reads it, labels included."""
    import torch

    ids, labels = conversations(options.case, options.batch, options.tokens)
    inputs = {"input_ids": torch.as_tensor(ids), "labels": torch.as_tensor(labels)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if options.case == "chat_100m":
        tiles = torch.as_tensor(pictures(options.batch)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        inputs["pixel_values"] = (tiles - mean) / std
    return inputs


def loss_of_labels(model: Any, labels: Any, **inputs: Any) -> Any:
    """Return the loss from the logits of the positions with a label alone."""
    import torch

    net = model.get_base_model()
    states = net.model(**inputs, use_cache=False).last_hidden_state
    following = labels[:, 1:]
    chosen = following != LABELS
    return torch.nn.functional.cross_entropy(net.lm_head(states[:, :-1][chosen]).float(), following[chosen])


def their_steps(options: argparse.Namespace) -> Iterator[float]:
    """Run training steps on one batch, over and over, and yield the loss of each."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(options.threads)
    model = adapted(options.case, options.weights, getattr(torch, options.precision))
    values = load_file(options.adapters / "adapter_model.safetensors")
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    if values.keys() != named.keys():
        raise ValueError(f"{options.adapters}: its keys are not those of the model's adapters")
    for name, parameter in named.items():
        parameter.data.copy_(values[name])
    if options.child != "eager":
        for layer in (m for m in model.modules() if type(m).__name__.endswith(("DecoderLayer", "VisionLayer"))):
            layer.compile()
    inputs = their_inputs(options)
    optimizer = torch.optim.AdamW(named.values(), RATE, weight_decay=0.0, fused=True)
    while True:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            whole = lambda: model(**inputs, use_cache=False).loss  # noqa: E731
            loss = loss_of_labels(model, **inputs) if options.child == "best" else whole()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), CLIP)
        optimizer.step()
        yield loss.item()


# ---- turns


def turns(steps: Iterator[float], measured: int) -> Iterator[dict]:
    """Yield turns: the losses of the first steps, and wall and CPU seconds of `measured` steps each."""

    def cost() -> tuple[float, float]:
        start, cpu_start = time.perf_counter(), time.process_time()
        next(steps)
        return time.perf_counter() - start, time.process_time() - cpu_start

    losses = list(itertools.islice(steps, COMPARED))
    while True:
        seconds, cpu = zip(*(cost() for _ in range(measured)))
        yield {"losses": losses, "seconds": seconds, "cpu": cpu}
        next(steps)  # slow after a pause, because a virtual machine returns free memory to its host


def child(options: argparse.Namespace) -> None:
    """Print a line of JSON for each line read from standard input, or write weights and adapters."""
    if options.child == "write":
        if not (options.weights / "config.json").exists():
            write_weights(options.weights)
        return write_adapters(options.case, options.weights, options.adapters)
    answers, sys.stdout = sys.stdout, sys.stderr
    steps = our_steps(options) if options.child == "ours" else their_steps(options)
    measured = turns(steps, options.steps)
    for _ in sys.stdin:
        print(json.dumps(next(measured)), file=answers, flush=True)


def measure(options: argparse.Namespace) -> dict:
    """Measure one case and return its results as JSON values."""
    names = ["ours", *options.against]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    given: Any = {"adapters": options.adapters, "tokens": options.tokens, "threads": options.threads}
    given |= {"script": Path(__file__)}
    step_time.call(options, "write", **given)
    with contextlib.ExitStack() as stack:
        running: dict[str, Callable[[], dict]] = {}
        for i in range(options.rounds):
            for name in names:
                running[name] = running.get(name) or stack.enter_context(step_time.started(options, name, **given))
                runs[name].append(running[name]())
                print(f"{options.case}, round {i + 1} of {options.rounds}, {name}: {runs[name][-1]}", flush=True)
    sizes = {"case": options.case, "batch": options.batch, "tokens": options.tokens, "precision": options.precision}
    return sizes | {"machine": step_time.machine("cpu"), "runs": runs}


def problems(found: dict) -> str:
    """Return a message if the first losses do not agree, or ""."""
    losses = {name: runs[0]["losses"] for name, runs in found["runs"].items()}
    agree = {name: np.allclose(x, losses["ours"], rtol=CLOSE[found["precision"]], atol=0) for name, x in losses.items()}
    return "" if all(agree.values()) else f"{found['case']}: first losses differ: {losses}"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def summary(found: dict) -> str:
    """Return a line for each program: seconds of a step, and how many times as long as fvjax's it takes."""
    lines = [f"{found['case']}, {found['batch']} rows of {found['tokens']} tokens, {found['precision']}"]
    for name, runs in found["runs"].items():
        own = {key: [statistics.median(run[key]) for run in runs] for key in ("seconds", "cpu")}
        ours = {key: [statistics.median(run[key]) for run in found["runs"]["ours"]] for key in own}
        ratio = {key: spread([a / b for a, b in zip(own[key], ours[key])]) for key in own}
        who = "fvjax" if name == "ours" else f"transformers + peft, {name}"
        lines.append(f"{who}: {spread(own['seconds'])} s, time / fvjax's {ratio['seconds']}; ")
        lines[-1] += f"CPU {spread(own['cpu'])} s, / fvjax's {ratio['cpu']}"
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(TOKENS), default="chat_100m")
    parser.add_argument("--against", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each turn")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--tokens", type=int, help="of each row (default: the case's)")
    parser.add_argument("--threads", type=int, default=2, help="threads and cores of every program")
    parser.add_argument("--precision", choices=list(CLOSE), default="float32")
    parser.add_argument("--weights", type=Path, help="folder of the weights; a random VLM is written there if missing")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tokens = options.tokens or TOKENS[options.case]
    if options.child:
        return child(options)
    if options.case == "smollm2" and not options.weights:
        parser.error("--case=smollm2 needs --weights=DIR: python -m weights_convert --src=smollm2 --dst=DIR")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with tempfile.TemporaryDirectory() as directory:
        options.weights = options.weights or Path(directory) / "weights"
        options.adapters = Path(directory) / "adapters"
        found = measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found), flush=True)
    if problem := problems(found):
        sys.exit(problem)


if __name__ == "__main__":
    main()
