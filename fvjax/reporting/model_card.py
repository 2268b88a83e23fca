"""The model card of an exported model (README.md as the Hugging Face Hub reads it), from the same data as a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvjax.evals import finished
from fvjax.evals.finished import FinishedRun
from fvjax.reporting import words
from fvjax.reporting.rates import operating_points

UNKNOWN_LICENSE = "unknown"  # as the Hub spells it
METRICS = {  # of results.json -> the metric's type in the card's header
    "accuracy@best_threshold": "accuracy",
    "accuracy@far=1e-3": "accuracy_at_far_1e-3",
    "auc": "roc_auc",
    "eer": "equal_error_rate",
}
LIMITS = (
    "A score says how alike two aligned faces of 112x112 pixels look to this model. It is evidence, not proof, of who "
    "somebody is.",
    "The false accept rate holds for strangers like the benchmark's. Relatives, people of one age, sex and origin, and "
    "pictures of another quality have another one.",
    "How the figures differ between groups of people is not known unless a benchmark above measures it.",
)


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        description: in a few words, such as "4 adapted modules, rank 8".
        step: of the checkpoint.
        library: the program that opens it ("peft", "transformers", "fvjax").
        scenario, pool: of ``fvjax.load``.
        adapters: whether it needs its base.
        license: the Hub's name of a licence, "unknown" if nobody gave one.
        base_model: the Hub's name of the base, "" if nobody gave one.
    """

    description: str
    step: int
    library: str
    scenario: str
    pool: str
    adapters: bool
    license: str = UNKNOWN_LICENSE
    base_model: str = ""


def read(workdir: Path, settings: dict[str, Any]) -> FinishedRun:
    """Return a run for its card; one that was never evaluated has no benchmarks."""
    if not (workdir / "results.json").is_file():
        return FinishedRun(workdir, settings, {"benchmarks": {}})
    return finished.read_run(workdir)


def card(run: FinishedRun, export: Export, name: str) -> str:
    """Return the text of README.md: a header in YAML, then what the model is, its figures, thresholds and limits."""
    evaluated = _evaluated(run, export)
    parts = [
        f"# {plain(name)}",
        f"{plain(export.description)}. Trained and exported with fvjax.",
        _list(words.model_facts(run)),
        "## How to load it",
        _loading(run, export),
        "## Figures",
        *(_figures(run) if evaluated else [_why_none(run, export)]),
        *(f"{plain(name)} could not be evaluated: {plain(why)}" for name, why in run.results.get("failed", {}).items()),
        "## Limits",
        "".join(f"- {line}\n" for line in LIMITS),
        "## Licence",
        _license(export),
        "## Origin",
        _list(_origin(run, export)),
    ]
    header = _header(run, export, name, evaluated)
    return f"---\n{header}---\n\n" + "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def plain(text: str) -> str:
    """Return text in which neither HTML nor the marks of Markdown's tables and code mean anything."""
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        text = text.replace(mark, written)
    return text


def _evaluated(run: FinishedRun, export: Export) -> bool:
    """Tell whether results.json has figures of the exported step."""
    return bool(run.pair_benchmarks) and run.results.get("step") == export.step


def _why_none(run: FinishedRun, export: Export) -> str:
    if not run.results["benchmarks"]:
        return "This model was not evaluated, so how often it is right is not known."
    if run.results.get("step") != export.step:
        step = run.results.get("step")
        return f"The run was evaluated at step {step}, and this is step {export.step}: its figures are not known."
    return "It was not evaluated on pairs of faces; the figures of other benchmarks are in the run's results.json."


def _header(run: FinishedRun, export: Export, name: str, evaluated: bool) -> str:
    """Return the YAML that the Hub reads."""
    from huggingface_hub import ModelCardData

    tags = ["face-recognition", "face-verification" if run.pair_benchmarks else "faces", "jax", "fvjax"]
    data = ModelCardData(
        license=export.license,
        library_name=export.library,
        base_model=export.base_model or None,
        tags=[*tags, "lora"] if export.adapters else tags,
        model_name=name if evaluated else None,
        eval_results=list(_eval_results(run)) if evaluated else None,
    )
    return data.to_yaml(line_break="\n") + "\n"


def _eval_results(run: FinishedRun) -> Iterator[Any]:
    """Yield the figures for the header's model-index, in per cent, with their intervals as the metric's arguments."""
    from huggingface_hub import EvalResult

    for benchmark in run.pair_benchmarks:
        entry = run.results["benchmarks"][benchmark]
        measured = {
            f"tar@far={p.target}": f"tar_at_far_{p.target}" for p in operating_points(entry, None) if p.measured
        }
        for key, kind in {**METRICS, **measured}.items():
            found = entry[key]
            edges = found["ci95"]
            yield EvalResult(
                task_type="face-verification",
                task_name="Face verification",
                dataset_type=benchmark,
                dataset_name=benchmark,
                metric_type=kind,
                metric_name=f"{key} (%)",
                metric_value=round(100 * found.get("mean", found.get("value")), 2),
                metric_args=None if edges is None else {"ci95": [round(100 * edge, 2) for edge in edges]},
            )


def _figures(run: FinishedRun) -> list[str]:
    """Return tables, thresholds and protocol of every benchmark of pairs."""
    out = []
    for benchmark in run.pair_benchmarks:
        entry = run.results["benchmarks"][benchmark]
        rows = [("all pairs", entry)]
        if entry.get("identity_disjoint"):
            rows.append(("unseen people only", entry["identity_disjoint"]))
        date = words.or_unknown(run.evaluation(benchmark).get("date"))
        source = f"Measured on {plain(benchmark)} (data {entry['data_hash'][:8]}), evaluated {date}."
        sentences = [*words.protocol(run, entry), words.acquisition(entry), words.seen_sentence(entry)]
        out += [
            f"### {plain(benchmark)}",
            _table(("", "pairs", *words.FIGURES.values()), [_row(name, its) for name, its in rows]),
            "In per cent; in brackets 95% intervals.",
            f"**Threshold.** {words.threshold_sentence(entry)} {source}",
            "**Protocol.** " + plain(" ".join(sentences)),
        ]
    return out


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    cells = [f"{words.value(entry[key])} [{words.interval(entry[key]['ci95'])}]" for key in words.FIGURES]
    return [name, f"{entry['n_pairs']:,}", *cells]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(plain(cell) for cell in line)} |\n" for line in lines)


def _list(found: Sequence[tuple[str, str]]) -> str:
    return "".join(f"- {name}: {plain(value)}\n" for name, value in found)


def _loading(run: FinishedRun, export: Export) -> str:
    """Return how Python opens the model. `BASE` and `DIR` stand for folders of the reader."""
    arguments = ['"BASE"' if export.adapters else '"DIR"', f'"{export.scenario}"']
    if export.adapters:
        arguments.append('adapters="DIR/adapter_model.safetensors"')
    if export.scenario in ("vit", "mllm"):
        arguments.append(f'pool="{export.pool}"')
    if export.scenario == "pair" or export.pool in ("all_mean", "last_token"):
        prompt = run.settings.get("prompt", {})
        arguments.append(f"prompt_ids={list(prompt.get('ids') or [])}")
        if export.scenario == "pair":
            arguments.append(f"yes_no_ids={list(prompt.get('yes_no_ids') or [])}")
    uses = {
        "pair": "p = model.p_same(a, b)  # uint8 [N, 112, 112, 3] RGB, aligned -> float32 [N]",
        "chat": 'text = model.generate([{"role": "user", "content": "<image> …"}], images=[picture])',
    }
    faces = "embeddings = model.embed(faces)  # uint8 [N, 112, 112, 3] RGB, aligned -> float32 [N, D]"
    code = f"import fvjax\n\nmodel = fvjax.load({', '.join(arguments)})\n{uses.get(export.scenario, faces)}"
    notes = ["`DIR` is the folder of these files."]
    if export.adapters:
        notes.insert(0, f"`BASE` is the folder of the model that the adapters were trained on{_base_name(export)}.")
    if not (run.settings.get("prompt", {}).get("ids") or "prompt_ids" not in code):
        notes.append(
            f"The prompt is {plain(repr(run.settings.get('prompt', {}).get('text', '')))}; its ids are the base's."
        )
    if run.results.get("flip_sum"):
        notes.append("The figures add the embeddings of mirrored faces.")
    return f"```python\n{code}\n```\n\n{' '.join(notes)}"


def _base_name(export: Export) -> str:
    return f", {plain(export.base_model)}" if export.base_model else ""


def _license(export: Export) -> str:
    if export.license == UNKNOWN_LICENSE:
        return (
            "Not known: nobody named one when this was exported. Ask before you use it; the base's licence holds, too."
        )
    return f"{plain(export.license)}. The licences of the base and of the training data hold, too."


def _origin(run: FinishedRun, export: Export) -> list[tuple[str, str]]:
    results = run.results
    return [
        ("step", str(export.step)),
        ("hash of the base", words.or_unknown(results.get("base_hash"))),
        ("hash of the training data", words.or_unknown(results.get("train_data_hash"))),
        ("hash of the config", words.or_unknown(results.get("config_hash"))),
        ("code version", words.or_unknown(results.get("code_version"))),
        ("precision", words.or_unknown(results.get("dtype"))),
    ]
