"""`fvjax CMD …`: every command of the project under one name. `fvjax CMD …` is `python -m MODULE …`, flag for flag."""

from __future__ import annotations

import runpy
import sys

import fvjax
from fvjax import startup

COMMANDS = {  # name: (module, what it does)
    "main": ("fvjax.main", "train or evaluate an experiment: fvjax main --config=quickstart"),
    "verify": ("fvjax.verify", "do two faces show one person?"),
    "evaluate": ("fvjax.evaluate", "benchmarks for a model that is not fvjax's: an ONNX file, a Python function"),
    "compare": ("fvjax.compare", "compare finished runs on the same pairs: figures, differences, p-values, plots"),
    "report": ("fvjax.report", "a report card of finished runs as one HTML page: figures, curves, error rates"),
    "reproduce": ("fvjax.reproduce", "run the paper's table, or a small version of it, and compare with the published"),
    "search": ("fvjax.search", "who of a gallery is this? finds faces among many, and measures how well"),
    "ijb": ("fvjax.ijb", "a model on IJB-B or IJB-C: templates compared and searched for"),
    "doctor": ("fvjax.doctor", "is my pipeline broken? looks at crops, labels, folds and a model's input"),
    "chat": ("fvjax.chat", "ask a vision-language model about pictures"),
    "demo": ("fvjax.demo", "a page to try a model with one's own pictures, for this computer only"),
    "prepare": ("fvjax.data.prepare", "make a face store from crops, photographs, RecordIO, .bin or TFDS data"),
    "describe": ("fvjax.data.describe", "make conversations about photographs of faces, and judge them"),
    "rules": ("fvjax.data.rules", "how often do attribute labels break logic rules, and which ones to drop?"),
    "face-tasks": ("fvjax.face_tasks", "figures of answers about faces: expression, action units, age, …, a judge"),
    "plan": ("fvjax.plan", "memory, FLOPs and least time of an experiment on GPUs that need not be there"),
    "export": ("fvjax.export", "write what a run trained for other programs"),
    "convert": ("weights_convert", "convert a checkpoint between Hugging Face's names and fvjax's"),
    "pretrain": ("fvjax.pretrain", "train the tiny tower that comes with fvjax, on procedural faces"),
}


def usage() -> str:
    """What `fvjax --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fvjax COMMAND …        fvjax COMMAND --help        fvjax --version",
            "",
            *lines,
            "",
            "fvjax COMMAND … is the same as python -m MODULE …, for example python -m fvjax.main.",
        ]
    )


def main() -> None:
    """Run a command as `python -m` would, under this process's name; exits as it does, 2 for an unknown one."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return
    if name == "--version":
        print(f"fvjax {fvjax.__version__} ({fvjax.code_version()})")
        return
    if name not in COMMANDS:
        print(f"fvjax: error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"fvjax {name}", *sys.argv[2:]]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    startup.run(main)
