"""FaceXBench as a store of conversations: one question and its right letter a record, and reading them back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fvjax.data.progress import progress_bar
from fvjax.data.readers import facexbench
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.readers.facexbench import Question
from fvjax.data.stores.conversations import Conversation, ConversationStore, Unusable, Writer

BENCHMARK = "facexbench"
_TEXTS = ("answer", "category", "sub_category", "file", "number", "num_images")  # of a record's meta


def convert(src: Path, dst: Path, *, setting: str, layout: str) -> ConversationStore:
    """Convert the questions of a FaceXBench folder to a store of conversations with the split "test".

    A record's messages are the prompt and the right letter; its meta has "benchmark": "facexbench", the options and the
    answer, category, sub_category, file, number and num_images. Questions that cannot be used are left out, listed and
    counted by reason; "facexbench" in the manifest has read = written + rejected.

    Args:
        src: the folder that has ``benchmark/``.
        setting, layout: see :func:`fvjax.data.readers.facexbench.read`.
    Raises:
        ValueError: as :func:`fvjax.data.readers.facexbench.read` raises it, or ``dst`` exists.
    """
    benchmark = facexbench.read(src, setting=setting, layout=layout)
    root = src / "benchmark"
    folder = PictureFolder(root)
    fairface = 0
    with progress_bar() as bar, Writer(dst, split="test", sources=[str(src)]) as writer:
        for rejection in benchmark.rejected:
            writer.reject(rejection.location, rejection.reason)
        for question in bar.track(benchmark.questions, description="questions"):
            location = f"{question.file} question {question.number}"
            try:
                pictures = [folder.read(path.relative_to(root).as_posix()) for path in question.pictures]
                writer.add(_messages(question), pictures, location, **_meta(question))
                fairface += question.overlaps_fairface
            except Unusable as error:
                writer.reject(location, error.reason)
            except ValueError as error:
                writer.reject(location, str(error))
        writer.info["facexbench"] = {
            "setting": setting,
            "layout": layout,
            "read": len(benchmark.questions) + len(benchmark.rejected),
            "written": writer.records,
            "rejected": len(writer.rejected),
            "options_left_out": benchmark.options_left_out,
            "fairface": fairface,
        }
    return ConversationStore(dst, "test")


def questions(store: ConversationStore) -> list[Question]:
    """Return all questions of a store, each with the number of its record, which has its pictures.

    Raises ValueError for a record that is no question of FaceXBench, or is damaged. The message names store and record.
    """
    return [_question(store, i) for i in range(len(store))]


def summary(store: ConversationStore) -> str:
    """Describe a new store in a few lines for the user."""
    counts, pictures = store.manifest["facexbench"], store.manifest["counts"]["pictures"]
    lines = [
        f"{store.path}: {counts['written']} questions with {pictures} pictures, split {store.split!r}; data "
        f"{store.data_hash[:16]}",
        f"  prompts {counts['setting']}, pictures {counts['layout']}; {counts['fairface']} questions on FairFace",
        f"  {counts['read']} questions read = {counts['written']} written + {counts['rejected']} rejected; "
        f"{counts['options_left_out']} options beyond the fourth left out",
    ]
    if rejected := store.manifest["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in store.manifest["rejected_by_reason"].items())
        lines.append(f"  rejected: {reasons}, listed in manifest.json")
        lines.append(f"  the first: {rejected[0]['file']}: {rejected[0]['reason']}")
    return "\n".join(lines)


def add_command(commands: Any) -> None:
    """Add the command ``facexbench`` with its flags to an argparse parser."""
    sub = commands.add_parser(BENCHMARK, help=(convert.__doc__ or "").split("\n")[0], allow_abbrev=False)
    sub.add_argument("--src", type=Path, required=True, help="the folder that has benchmark/*.json")
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    setting, layout = facexbench.SETTINGS[0], facexbench.LAYOUTS[0]
    sub.add_argument("--setting", choices=facexbench.SETTINGS, default=setting, help=f"of the prompts ({setting})")
    sub.add_argument("--layout", choices=facexbench.LAYOUTS, default=layout, help=f"of several pictures ({layout})")
    sub.set_defaults(run=convert, summary=summary)


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": question.answer}]


def _meta(question: Question) -> dict[str, Any]:
    texts = {key: getattr(question, key) for key in _TEXTS}
    return {"benchmark": BENCHMARK, "options": list(question.options), **texts}


def _question(store: ConversationStore, i: int) -> Question:
    record = store.conversation(i)
    if problem := _problem(record):
        raise ValueError(
            f"{store.path} record {i} ({record.source}): {problem}; make the store with python -m fvjax.data.prepare "
            "facexbench"
        )
    texts = {key: record.meta[key] for key in _TEXTS}
    return Question(
        **texts,
        pictures=(),
        prompt=record.messages[0]["content"],
        options=tuple(record.meta["options"]),
        overlaps_fairface=facexbench.overlaps_fairface(texts["file"]),
        record=i,
    )


def _problem(record: Conversation) -> str:
    """Say why a record is no question of FaceXBench; "" if it is one."""
    meta, options = record.meta, record.meta.get("options")
    if meta.get("benchmark") != BENCHMARK or Counter(m["role"] for m in record.messages) != {"user": 1, "assistant": 1}:
        return "no question of FaceXBench"
    if broken := next((key for key in _TEXTS if not isinstance(meta.get(key), str)), None):
        return f"its {broken} is no text"
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        return "its options are no list of texts"
    if meta["answer"] not in [*facexbench.LETTERS[: len(options)]] or record.messages[1]["content"] != meta["answer"]:
        return "its answer is no option's letter"
    return ""
