"""`python -m fvjax.export --workdir=RUN --dst=DIR [--merged] [--layout=remote|hf] [--license=…] [--push-to-hub=…]`

Write what a run of `python -m fvjax.main` trained for other people's programs: its best or newest checkpoint becomes
the new directory DIR. Adapters are written in PEFT's layout (`adapter_model.safetensors`, `adapter_config.json`). With
--merged, and for a run without adapters, DIR gets the whole model in its original layout: the base's own shards,
dtypes, config.json and tokenizer, with what was trained in its weights. --layout writes either for the other layout of
an InternVL model: "remote" for OpenGVLab's own code, "hf" for transformers' classes. Either way DIR gets a model card,
README.md, with the run's figures. User errors are one line on standard error and exit code 2.

--push-to-hub=OWNER/NAME shows what would be uploaded to the Hugging Face Hub; with --yes it is. Without --workdir, DIR
is what an earlier export wrote, perhaps with a card that somebody has edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from fvjax import api, errors, files, shipped, startup, trees
from fvjax.config import Config
from fvjax.models import lora
from fvjax.reporting import model_card, upload
from fvjax.reporting.model_card import UNKNOWN_LICENSE, Export
from fvjax.training.restore import restore
from weights_convert import open_checkpoint, write_adapters
from weights_convert.write import rewrite, write_original


def export(
    workdir: str | Path,
    dst: str | Path,
    merged: bool = False,
    layout: str | None = None,
    *,
    license: str = UNKNOWN_LICENSE,
    base_model: str = "",
) -> str:
    """Write the new directory ``dst`` and return what it is, in a few words. One shard at a time is in memory.

    Args:
        workdir: of a run of ``python -m fvjax.main``.
        merged: write the whole model instead of adapters.
        layout: "remote" or "hf", for an InternVL model; None means the layout of the run's base.
        license, base_model: for the model card, as the Hugging Face Hub names them.
    Raises:
        ValueError: no work directory or nothing trained in it, another base than it was trained on, ``dst`` exists, the
            model has no layout but this run's, or the whole model is wanted of a run with int8 kernels.
    """
    workdir, config = Path(workdir), api.read_config(Path(workdir))
    if Path(dst).exists():
        raise ValueError(f"{dst} exists; choose a new directory")
    if not config.trains:
        raise ValueError(f"{workdir} trained nothing (config.epochs=0), so there is nothing to export")
    if config.base_kernels == "int8" and (merged or not config.lora.rank):
        problem = "its base has int8 kernels (config.base_kernels), and merged weights would compute something else"
        raise ValueError(f"{workdir}: {problem}; export its adapters alone, without --merged")
    run = model_card.read(workdir, config.to_dict())
    restored = restore(config, workdir)

    def card(description: str, library: str) -> str:
        base = config.init_from
        exported = Export(
            description=description.replace(base, Path(base).name) if base else description,
            step=restored.step,
            library=library,
            scenario=_scenario(config),
            pool=config.model.pooling,
            adapters=(Path(dst) / "adapter_config.json").is_file(),
            license=license,
            base_model=base_model,
        )
        try:
            return model_card.card(run, exported, config.name)
        except (KeyError, TypeError, AttributeError) as error:
            problem = "its results.json is of another version or task, and has no model card"
            raise ValueError(f"{workdir}: {problem} ({error!r}); evaluate it again") from error

    card("", "")  # finds what is wrong with the results before anything is written
    description, library = _write_weights(config, workdir, restored, dst, merged, layout)
    files.replace_file(Path(dst) / upload.CARD, card(description, library))
    return f"{description}, step {restored.step} of {workdir}"


def _write_weights(
    config: Config, workdir: Path, restored: Any, dst: str | Path, merged: bool, layout: str | None
) -> tuple[str, str]:
    """Write ``dst``; return what it is in a few words, and the library that opens it. Arguments as of `export`."""
    leaves = trees.flatten({**restored.trainable, **restored.stats})
    adapters = {n.removeprefix("lora/"): np.asarray(x) for n, x in leaves.items() if n.startswith("lora/")}
    whole = {n: np.asarray(x) for n, x in leaves.items() if not n.startswith("lora/")}
    kind = config.model.kind

    if adapters and not merged:
        if whole:
            trained = f"{workdir} also trained {len(whole)} arrays in full, the first {next(iter(whole))}"
            remedy = ", and int8 kernels cannot be merged" if config.base_kernels == "int8" else ": add --merged"
            raise ValueError(f"{trained}; adapters do not hold those{remedy}")
        if not config.init_from:
            raise ValueError(f"{workdir}: the adapters belong to no one directory (config.init_from is empty)")
        write_adapters(dst, adapters, config.lora.alpha, shipped.weights(config.init_from), kind, layout)
        return f"{len(adapters) // 2} adapted modules, rank {config.lora.rank}", "peft"
    if config.init_from:
        base = open_checkpoint(shipped.weights(config.init_from), kind)
        scale = config.lora.alpha / config.lora.rank if adapters else 0.0
        merge(base, dst, adapters, scale, whole, layout)
        form = f"layout {layout!r} and the" if layout else "layout and"
        return f"{kind} in the {form} dtypes of {config.init_from}", "transformers"
    if layout:
        raise ValueError(f"{workdir}: layout {layout!r} belongs to InternVL models with weights in config.init_from")
    if kind != "iresnet" or adapters:
        raise ValueError(f"{workdir}: without config.init_from, an original layout is known of an iresnet only")
    net: Any = restored.model.encoder.net
    sizes = {"layers": list(net.layers), "widths": list(net.widths), "num_features": net.num_features}
    frozen = trees.flatten(restored.model.read_frozen())
    arrays = whole | {n: np.asarray(x, np.float32) for n, x in frozen.items()}
    write_original(dst, arrays, {"architectures": ["IResNet"], **sizes})
    return "iresnet with insightface's keys", "fvjax"


def _scenario(config: Config) -> str:
    """Return the scenario under which ``fvjax.load`` opens what is exported."""
    if config.model.kind != "vlm":
        return {"iresnet": "resnet"}.get(config.model.kind, "vit")
    if config.task == "pair_answer":
        return "pair"
    return "mllm" if config.model.pooling else "chat"


def merge(
    base: Any,
    dst: str | Path,
    adapters: Mapping[str, Any],
    scale: float,
    whole: Mapping[str, Any],
    layout: str | None = None,
) -> None:
    """Write a copy ``dst`` of ``base`` (an open checkpoint) with what was trained, in the base's dtypes.

    Args:
        adapters: flat tree as from :func:`lora.init`, added times ``scale``; where they are zero no bit changes.
        whole: arrays that replace the base's, by name ("params/…", "batch_stats/…").
        layout: "remote" or "hf", if the copy is to have another layout than the base.
    Raises ValueError: ``dst`` exists, a name that the base lacks, or a layout that it cannot have.
    """

    def add(module, kernel, layer):
        one = slice(None) if layer is None else layer
        ab = {f"{module}/{half}": adapters[f"{module}/{half}"][one] for half in "ab"}
        return np.asarray(lora.merge({f"{module}/kernel": kernel}, ab, scale)[f"{module}/kernel"])

    def take(name, kernel, layer):
        del kernel
        return whole[name] if layer is None else whole[name][layer]

    changes = {f"params/{n[:-2]}/kernel": partial(add, n[:-2]) for n in adapters}
    if both := sorted(set(changes) & set(whole)):
        raise ValueError(f"{both[0]} was trained in full and has an adapter")
    rewrite(base, dst, changes | {name: partial(take, name) for name in whole}, layout)


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = startup.Parser(prog="python -m fvjax.export", description=__doc__)
    parser.add_argument("--workdir", help="of a run of python -m fvjax.main")
    parser.add_argument("--dst", required=True, help="directory to write; must not exist, unless it is only uploaded")
    parser.add_argument("--merged", action="store_true", help="the whole model instead of adapters")
    parser.add_argument(
        "--layout",
        choices=["remote", "hf"],
        help="of an InternVL model: as OpenGVLab's code (remote) or transformers' classes (hf) open it; "
        "the default is the layout of the run's base",
    )
    parser.add_argument("--license", default=UNKNOWN_LICENSE, help="for the model card, such as mit (%(default)s)")
    parser.add_argument("--base-model", default="", metavar="OWNER/NAME", help="for the card: the base on the Hub")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="show what would be uploaded there")
    parser.add_argument("--yes", action="store_true", help="upload it")
    flags = parser.parse_args(argv)
    logging.set_verbosity(logging.WARNING)
    if flags.workdir is None and not flags.push_to_hub:
        raise ValueError("--workdir=RUN is missing; without it, --push-to-hub uploads what --dst has")
    if flags.yes and not flags.push_to_hub:
        raise ValueError("--yes belongs to --push-to-hub=OWNER/NAME")
    if flags.workdir is not None:
        card = {"license": flags.license, "base_model": flags.base_model}
        with errors.naming(flags.dst):
            print(f"{flags.dst}: {export(flags.workdir, flags.dst, flags.merged, flags.layout, **card)}")
    if flags.push_to_hub:
        print(_push(Path(flags.dst), flags.push_to_hub, flags.yes))
    return 0


def _push(folder: Path, repository: str, upload_it: bool) -> str:
    """Show what an upload does; upload only if asked to. Raises ValueError as :func:`upload.push`."""
    print(upload.preview(folder, repository))
    upload.check_card(folder)
    if not upload_it:
        again = f"python -m fvjax.export --dst={folder} --push-to-hub={repository} --yes"
        return f"Nothing was uploaded. To upload it: {again}"
    return f"Uploaded: {upload.push(folder, repository)}"


if __name__ == "__main__":
    startup.run(main)
