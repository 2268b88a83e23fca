"""Measure the tokens per second that a decoder generates greedily, and those of transformers with the same weights.

    python -m weights_convert --src=smollm2 --dst=DIR
    python benchmarks/generation.py --model=DIR [--prompt=64] [--tokens=128] [--rounds=3] [--threads=2]

--model: a directory in Hugging Face layout with a LLaMA or Qwen2 decoder. Both programs hold it in float32 in this
process, use a key-value cache, continue the same random prompt of --prompt tokens by --tokens tokens, and take turns,
A B A B. The first call of each, which compiles, is not counted. They must generate the same tokens. The time to the
first token, which reads the prompt, is measured by a call for one token and taken off. CPU time, over all threads, is
printed as well: other programs on the machine change it less than the seconds and the tokens per second.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np


def fvjax_generator(path: str, ids: np.ndarray) -> Callable[[int], list[int]]:
    """Return a function that generates so many tokens with fvjax."""
    import jax
    import jax.numpy as jnp

    from fvjax import trees
    from fvjax.models.generation import generate
    from weights_convert import build, open_checkpoint

    checkpoint = open_checkpoint(path, "decoder")
    model = build("decoder", checkpoint.model_config)
    variables = trees.unflatten({name: jnp.asarray(np.asarray(leaf)) for name, leaf in checkpoint.params.items()})
    never = (model.vocab,)  # an id that ends nothing
    embed = jax.jit(lambda ids: model.apply(variables, ids, method="embed_tokens"))

    def run(count: int) -> list[int]:
        return generate(model, variables, embed(ids), max_tokens=count, eos=never)[0][0].tolist()

    return run


def transformers_generator(path: str, ids: np.ndarray, threads: int) -> Callable[[int], list[int]]:
    """Return a function that generates so many tokens with transformers."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.as_tensor(ids)

    def run(count: int) -> list[int]:
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
        return out[0, prompt.shape[1] :].tolist()

    return run


CLOCK = 1e-9  # seconds, the resolution of the clocks: less than any call takes


class Cost(NamedTuple):
    """Seconds that a call took."""

    wall: float
    cpu: float  # over all threads


def cost(run: Callable[[int], list[int]], count: int) -> Cost:
    start, cpu_start = time.perf_counter(), time.process_time()
    run(count)
    return Cost(time.perf_counter() - start, time.process_time() - cpu_start)


def spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the decoder in Hugging Face layout")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of both programs")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    ids = np.random.default_rng(0).integers(100, 1000, (1, options.prompt))
    programs = {
        "fvjax": fvjax_generator(options.model, ids),
        "transformers": transformers_generator(options.model, ids, options.threads),
    }
    generated = {name: run(options.tokens) for name, run in programs.items()}
    same = generated["fvjax"] == generated["transformers"]
    print(f"{options.tokens} tokens after {options.prompt}: {'the same' if same else 'DIFFERENT'} from both programs")
    for run in programs.values():
        run(1)
    firsts: dict[str, list[Cost]] = {name: [] for name in programs}
    each_token: dict[str, list[Cost]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, run in programs.items():
            first, whole = cost(run, 1), cost(run, options.tokens)
            firsts[name].append(first)
            each_token[name].append(Cost(*((b - a) / (options.tokens - 1) for a, b in zip(first, whole))))
    for name in programs:
        rate, cpu = (
            spread([1 / max(c.wall, CLOCK) for c in each_token[name]]),
            spread([1000 * c.cpu for c in each_token[name]]),
        )
        print(f"{name}: {rate} tokens/s, {cpu} ms of CPU time per token")
        first, cpu = spread([c.wall for c in firsts[name]], 3), spread([c.cpu for c in firsts[name]], 3)
        print(f"{name}: first token after {first} s, {cpu} s of CPU time")
    pairs = list(zip(each_token["fvjax"], each_token["transformers"]))
    print(f"fvjax / transformers: tokens/s {spread([b.wall / max(a.wall, CLOCK) for a, b in pairs], 2)}")
    print(f"transformers' / fvjax's CPU time per token: {spread([b.cpu / max(a.cpu, CLOCK) for a, b in pairs], 2)}")


if __name__ == "__main__":
    main()
