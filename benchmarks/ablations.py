"""Measure each optimisation: a training step without it against the unchanged step, in turn, in one session.

    python benchmarks/ablations.py --case=CASE [--only=NAME …] [--rounds=2] [--batch=N] [--weights=DIR]
    python benchmarks/ablations.py --ledger        writes the ledger's table from benchmarks/results/ablations/*.json

Each optimisation is removed from a copy of the working tree, by an edit, a config value or the environment.
step_time.py's child process measures the copy on the CPU in float32, in turns with a process that runs the unchanged
step. A time is the median of a turn's steps after the warm-up. A ratio is the median over rounds of (time without) /
(time unchanged). The first loss must not change, so that both compute the same. Predictions were written down before
the measurements.
"""

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import cases, step_time
from tests.mutations import copy_project

RESULTS = step_time.RESULTS / "ablations"
MARKS = "<!-- ablations: python benchmarks/ablations.py --ledger -->\n", "<!-- end of ablations -->\n"
LAYERS, CASES = "fvjax/models/layers.py", "benchmarks/cases.py"
VLM, DECODER, CONV = "fvjax/models/vlm.py", "fvjax/models/decoder.py", "fvjax/models/cpu_conv.py"
A, B = (f'self.get_variable("lora", "{key}").astype(self.dtype)' for key in "ab")
LOGITS = 'return jnp.einsum("...d,vd->...v", states, kernel, preferred_element_type=jnp.float32)'
ATTENTION = "tests/test_attention.py"


class Ablation(NamedTuple):
    name: str
    what: str  # the optimisation that is removed
    cases: tuple[str, ...]
    predicted: str  # expected ratio of times without it, and the reason
    parity: str  # arguments of pytest for the test that the results are equal
    edits: tuple[tuple[str, str, str], ...] = ()  # file, text that occurs in it exactly once, replacement
    settings: tuple[str, ...] = ()  # config values, KEY=VALUE
    tunables: bool = True  # whether glibc's tunables are set as in fvjax.main


ABLATIONS = (
    Ablation(
        "adapter_gradients",
        "the adapters' gradients are products with r rows, so that no activations are transposed",
        ("mllm_100m", "internvit"),
        "1.2: transposes were 19% of the device-seconds of a trace",
        "tests/test_lora.py -k low_rank",
        ((LAYERS, 'low_rank(x, *(self.get_variable("lora", key).astype(self.dtype) for key in "ab"))',
          f"(x @ {A}.T) @ {B}"),),
    ),
    Ablation(
        "by_head",
        "attention runs one key head after the other and recomputes the logits for the gradient",
        ("mllm_100m", "internvit"),
        "1.2: the logits of all heads are written and read about 8 times in memory instead of in the cache",
        ATTENTION,
        settings=("attention=xla",),
    ),
    Ablation(
        "blocks_of_queries",
        "attention processes 128 queries of a head at a time",
        ("mllm_100m", "internvit"),
        "1.1: a head's logits (17 MB for 4 images) do not fit into a core's own cache, but into the shared one here",
        ATTENTION,
        ((LAYERS, "QUERIES = 128 ", "QUERIES = 1 << 20 "),),
    ),
    Ablation(
        "probabilities_not_turned",
        "gradients of keys and values have the head size as their first axis, so that no probabilities are transposed",
        ("mllm_100m",),
        "1.05: one more pass over the logits for each of two products",
        ATTENTION,
        ((LAYERS, '_einsum("ngtd,ngts->nds", q[:, :, rows], dlogits)',
          '_einsum("ngts,ngtd->nsd", dlogits, q[:, :, rows]).swapaxes(1, 2)'),
         (LAYERS, '_einsum("ngtd,ngts->nds", dy[:, :, rows], p.astype(dy.dtype))',
          '_einsum("ngts,ngtd->nsd", p.astype(dy.dtype), dy[:, :, rows]).swapaxes(1, 2)')),
    ),
    Ablation(
        "attended_kept",
        'remat "dots" also keeps the result of attention by head',
        ("internvit",),
        "1.05: without it, attention's forward pass is computed twice",
        ATTENTION + " -k remat",
        ((LAYERS, "checkpoint_name(lax.map(attend_head, (q, k, v)), SAVED)", "lax.map(attend_head, (q, k, v))"),),
    ),
    Ablation(
        "sums_kept",
        'remat "dots" keeps the sum of a product and its adapter, not both terms',
        ("internvit",),
        "1.03: a third of the kept values is written, zeroed and read needlessly",
        ATTENTION + " -k dots",
        ((LAYERS, "return checkpoint_name(y, SAVED)", "return y"),
         (LAYERS, '"dots": jax.checkpoint_policies.save_only_these_names(SAVED)',
          '"dots": jax.checkpoint_policies.save_from_both_policies(jax.checkpoint_policies.dots_with_no_batch_dims_'
          'saveable, jax.checkpoint_policies.save_only_these_names(SAVED))')),
    ),
    Ablation(
        "remat_auto",
        "nothing is recomputed if memory allows it (remat auto)",
        ("mllm_100m",),
        "1.33: one more forward pass, where a step has the cost of three",
        "tests/test_plan.py -k remat",
        settings=("remat=full",),
    ),
    Ablation(
        "device_per_core",
        "every core is its own device",
        ("mllm_100m", "resnet50"),
        "1.1: XLA runs everything but products and convolutions on one core",
        "tests/test_train.py -k eight",
        ((CASES, "return 1 if batch // 2 % cores else cores", "return 1"),),
    ),
    Ablation(
        "huge_pages",
        "glibc allocates memory in huge pages",
        ("internvit", "resnet50"),
        "1.1: page faults for gigabytes of scratch memory",
        "none: no result depends on it",
        tunables=False,
    ),
    Ablation(
        "donation",
        "the state's buffers are donated to the step",
        ("mllm_100m", "resnet50"),
        "1.00; 0.5 GiB more for the parameters and momentum of a ResNet-50, no change with adapters",
        "tests/test_train.py",
        ((CASES, "donate_argnums=0, out_shardings=(where, None)", "out_shardings=(where, None)"),),
    ),
    Ablation(
        "one_part_without_loop",
        "a batch that is not accumulated runs without a loop",
        ("pair_100m",),
        "1.1: XLA does not fuse a loop of one iteration with the operations around it",
        "tests/test_gradients.py -k parts",
        (("fvjax/losses/accumulation.py", "if parts == 1:\n\n            def mean(",
          "if parts == 0:\n\n            def mean("),),
    ),
    Ablation(
        "last_token_only",
        "for an answer, the last layer computes queries, attention and MLP of the last token only",
        ("pair_100m",),
        "1.03: the share of these FLOPs",
        "tests/test_flops.py -k compute_the_same",
        ((VLM, "self.decoder(self.sequence(visual, text), last=True)[:, 0]",
          "self.decoder(self.sequence(visual, text))[:, -1]"),),
    ),
    Ablation(
        "two_rows_of_the_head",
        "for an answer, only the logits of Yes and No are computed",
        ("pair_100m",),
        "1.01: one token's logits are hardly any of the FLOPs",
        "tests/test_flops.py -k compute_the_same",
        ((DECODER, "self.head if rows is None else self.head[jnp.asarray(rows)]", "self.head"),
         (DECODER, LOGITS, f"{LOGITS}[..., slice(None) if rows is None else jnp.asarray(rows)]")),
    ),
    Ablation(
        "winograd",
        "wide 3x3 convolutions need 16 products instead of 36 (Winograd)",
        ("resnet50", "small_real"),
        "1.45 for resnet50: alone, these convolutions and their gradients took 7.1 s instead of 12.5 s, of 17.5 s",
        "tests/test_cpu_conv.py",
        ((CONV, "return stride == 1 and", "return False and"),),
    ),
    Ablation(
        "gradient_kernels",
        "their input gradients reuse the forward pass's transformed kernels, in another order",
        ("resnet50",),
        "1.08: transforming them took 0.65 of the 8.77 device-seconds of a trace",
        "tests/test_cpu_conv.py",
        ((CONV, "_winograd(g, kernel, transposed=True)", "_winograd(g, kernel[::-1, ::-1].swapaxes(2, 3))"),),
    ),
    Ablation(
        "turns_second",
        "the loop over their images runs along the second axis, after that of the devices, so that XLA copies nothing",
        ("resnet50",),
        "1.02: copies took 0.16 of the 8.77 device-seconds of a trace",
        "tests/test_cpu_conv.py",
        ((CONV, "own // n, n, *x.shape[1:])", "own // n, n, *x.shape[1:]).swapaxes(0, 1)"),
         (CONV, "lax.dynamic_index_in_dim(x, i, 1,", "lax.dynamic_index_in_dim(x, i, 0,"),
         (CONV, "(0, arrays[0].shape[1], body", "(0, arrays[0].shape[0], body"),
         (CONV, "(done, y, i, 1)", "(done, y, i, 0)"),
         (CONV, "xs).reshape(-1, h, w, out)", "xs).swapaxes(0, 1).reshape(-1, h, w, out)"),
         (CONV, "(len(xs), g.shape[-1], 9 *", "(xs.shape[1], g.shape[-1], 9 *"),
         (CONV, "(len(xs), g.shape[-1], x.", "(xs.shape[1], g.shape[-1], x.")),
    ),
    Ablation(
        "strided_input_gradient",
        "the input gradient of a strided convolution is computed as four convolutions of stride 1",
        ("resnet50",),
        "1.05: XLA's took 0.60 of a trace's 8.77 device-seconds, its forward convolutions with the same FLOPs 0.25",
        "tests/test_cpu_conv.py",
        ((CONV, "if stride == 2 and", "if stride == 0 and"),),
    ),
    Ablation(
        "weight_gradient",
        "the weight gradients of the other 3x3 convolutions are products, image by image, without transposes",
        ("resnet50",),
        "1.1: alone on one core, those of 16 images took 1.31 s, XLA's 1.64 s, of about 4 s for all convolutions",
        "tests/test_cpu_conv.py",
        ((CONV, "by_input, _weight_gradient(x, kernel, stride, g)",
          "by_input, jax.vjp(lambda kernel: _conv(x, kernel, stride), kernel)[1](g)[0]"),),
    ),
    Ablation(
        "pixel_pairs",
        "the first convolution reads two pixels of three channels as one pixel of six",
        ("resnet50", "small_real"),
        "1.02: three channels do not fill a vector register, in a layer with 1% of the FLOPs",
        "tests/test_cpu_conv.py",
        ((CONV, "if channels > 4 or stride != 1 or w % 2:", "if channels:"),),
    ),
)  # fmt: skip


def without(ablation: Ablation, folder: Path) -> dict[Path, str]:
    """Return the new text of each file in `folder` that the ablation changes.

    Raises ValueError if the list no longer matches the code.
    """
    texts: dict[Path, str] = {}
    for file, old, new in ablation.edits:
        text = texts.get(folder / file) or (folder / file).read_text()
        if (count := text.count(old)) != 1:
            raise ValueError(f"{ablation.name}: {file} has {old!r} {count} times instead of once; correct {__file__}")
        texts[folder / file] = text.replace(old, new)
    return texts


def measure(options: argparse.Namespace) -> dict:
    """Measure one case and return its results as JSON values.

    "runs" has the turns of the unchanged step under "", and those of each ablation under its name. "beside" is the time
    of the unchanged step in the turn before.
    """
    chosen = [a for a in ABLATIONS if options.case in a.cases and (not options.only or a.name in options.only)]
    runs: dict[str, list[dict]] = {"": []}
    with tempfile.TemporaryDirectory(prefix="fvjax-ablations-") as folder:
        copy = Path(folder) / "fvjax"
        copy_project(copy)
        script = copy / "benchmarks/step_time.py"
        options.weights = options.weights or Path(folder) / (options.case.partition("_")[2] or options.case)
        if not (options.weights / "config.json").exists():
            step_time.call(options, "write")
        with step_time.started(options, "ours", script=script) as as_it_is:
            runs[""].append(as_it_is())  # this process has read the code before it changes
            for ablation in chosen:
                tunables, changed = step_time.TUNABLES if ablation.tunables else "", without(ablation, copy)
                sound = {path: path.read_text() for path in changed}
                for path, text in changed.items():
                    path.write_text(text)
                with step_time.started(options, "ours", ablation.settings, script, tunables) as changed_step:
                    changed_step()
                    for path, text in sound.items():
                        path.write_text(text)
                    runs[ablation.name] = []
                    for i in range(options.rounds):
                        runs[""].append(as_it_is())
                        runs[ablation.name].append(changed_step() | {"beside": runs[""][-1]["seconds"]})
                        label = f"{options.case}, {ablation.name}, round {i + 1} of {options.rounds}"
                        print(f"{label}: {runs[ablation.name][-1]}", flush=True)
    return {
        "case": options.case,
        "batch": options.batch,
        "date": datetime.date.today().isoformat(),
        "command": "python " + " ".join(shlex.quote(a) for a in ["benchmarks/ablations.py", *sys.argv[1:]]),
        "machine": step_time.machine("cpu"),
        "runs": runs,
    }


def problems(found: dict) -> str:
    """Return a message if a first loss differs from that of the unchanged step, or ""."""
    losses = {name: runs[0]["loss"] for name, runs in found["runs"].items()}
    ours = losses[""]
    wrong = {name: loss for name, loss in losses.items() if not abs(loss - ours) <= 1e-5 * (1 + abs(ours))}
    return f"{found['case']}: the first loss is {ours}, without {wrong}" if wrong else ""


def table(results: list[dict]) -> str:
    """Return the ledger's table of all results and the commands that made them."""
    lines = ["| optimisation | predicted time without / with it | measured | peak GiB with, without it | parity test |"]
    lines += ["|---|---|---|---|---|"]
    for ablation in ABLATIONS:
        measured, memory = [], []
        for found in results:
            if ablation.name not in found["runs"]:
                continue
            runs, ours = found["runs"][ablation.name], found["runs"][""]
            # Older results have no "beside"; they are compared with the turn of the same round.
            beside = [run.get("beside", other["seconds"]) for run, other in zip(runs, ours)]
            ratios = [statistics.median(run["seconds"]) / statistics.median(b) for run, b in zip(runs, beside)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            measured.append(f"{found['case']} {statistics.median(ratios):.2f} ({spread})")
            memory.append(" to ".join(f"{max(run['gib'] for run in each):.1f}" for each in (ours, runs)))
        if measured:
            cells = ablation.what, ablation.predicted, "; ".join(measured), "; ".join(memory), ablation.parity
            lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n\n"
    for found in results:
        machine = found["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine.items() if k not in ("device", "torch"))
        step = statistics.median(statistics.median(run["seconds"]) for run in found["runs"][""])
        text += f"{found['case']}: `{found['command']}` (batch {found['batch']}, {step:.3g} s per unchanged step; "
        text += f"{machine['device']}; {versions}; {found['date']})\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted({case for a in ABLATIONS for case in a.cases}), default="mllm_100m")
    parser.add_argument("--only", action="append", choices=[a.name for a in ABLATIONS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=0, help="measured steps after the warm-up (default: the case's)")
    parser.add_argument("--weights", type=Path, help="folder of the weights; they are written there if missing")
    parser.add_argument("--json", type=Path, help="file for the results (default: in benchmarks/results/ablations)")
    parser.add_argument("--ledger", action="store_true", help="only write the table into benchmarks/README.md")
    options = parser.parse_args()
    if options.ledger:
        return step_time.ledger(RESULTS, MARKS, table)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a cached module could hide an edit of equal length
    options.device, options.precision = "cpu", "float32"
    options.batch = options.batch or cases.BATCH[options.case][0]
    found = measure(options)
    path = options.json or RESULTS / f"{options.case}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(table([found]), flush=True)
    if problem := problems(found):
        sys.exit(problem)


if __name__ == "__main__":
    main()
