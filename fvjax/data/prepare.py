"""Make face stores from aligned crops or photographs, and stores of conversations about pictures.

    python -m fvjax.data.prepare folder --src=DIR --dst=STORE              DIR/IDENTITY/**/*.jpg -> training store
    python -m fvjax.data.prepare recordio --src=DIR --dst=STORE            DIR/train.rec -> stores STORE, STORE/val
    python -m fvjax.data.prepare lfw --src=DIR --pairs=pairs.txt --dst=STORE   DIR/NAME/NAME_0001.jpg -> benchmark lfw
    python -m fvjax.data.prepare cfp --src=DIR --protocol=DIR --dst=STORE  DIR/001/{frontal,profile}/01.jpg -> ff, fp
    python -m fvjax.data.prepare bin --src=FILE.bin --dst=STORE            insightface's lfw.bin -> benchmark lfw
    python -m fvjax.data.prepare pairs --src=DIR --pairs=my.csv --dst=STORE    pairs of your own -> benchmark my
    python -m fvjax.data.prepare ijb --src=IJBC --dst=STORE                IJB-B or IJB-C -> templates (docs/search.md)
    python -m fvjax.data.prepare folder --src=tfds:NAME --dst=STORE        a prepared TFDS dataset -> training store
    python -m fvjax.data.prepare conversations --src=FILE.json --images=DIR --dst=STORE   questions, answers, pictures
    python -m fvjax.data.prepare facexbench --src=DIR --dst=STORE          DIR/benchmark/*.json -> benchmark facexbench
    python -m fvjax.data.prepare celeba|maad|fairface|utkface|expw|rafdb --src=DIR … --dst=STORE   attributes
    python -m fvjax.data.prepare attributes --src=tfds:celeb_a --dst=STORE     a TFDS dataset's nested booleans

Images of faces are 112x112 RGB. JPEGs of that size are stored byte for byte, without what a camera appended. Other
formats, CMYK and images that EXIF says are rotated are re-encoded, upright and in RGB.

Every file that is not taken is counted by reason: hidden files and tools' leftovers, copies, links to what is taken
already, and whatever is no picture (docs/input_files.md). Lists may have tabs or blanks, any end of line, a byte order
mark, another Unicode form or another suffix than the files.

    --align[=mtcnn|scrfd]    the images are photographs of any size: find the face nearest the centre and align it
    --landmarks=FILE.tsv     the same with known points: file, five points x y, tab-separated
    --policy=fail|drop|fallback   what to do about images without a face (fallback: take their centre) and about missing
                             and broken ones (fallback: as by default); counted in the manifest, and as failure to
                             acquire in every result
    lfw --download --align   fetches LFW with scikit-learn, instead of --src and --pairs

Exit code 0, or 2 with one line that says what is wrong; then nothing is left at --dst.

`recordio` reads MXNet RecordIO (fvjax/data/readers/recordio). Of each identity's images a part (--val) goes to
STORE/val, a store with the split "val" whose identities have the numbers they have in STORE. --top keeps the identities
with the most images. It works on all cores (--workers), and the same command resumes a killed conversion.

`pairs` reads a CSV file with a header: the columns a and b have paths relative to --src, same has 1 or 0 (true, yes,
false, no); fold, identity_a and identity_b are optional (docs/results.md).

`conversations` reads the JSON or JSONL of LLaVA, ShareGPT, FairFaceGPT and OpenAI, and pictures of any size, which it
keeps byte for byte, as above. What cannot be used is left out, listed and counted by reason. With --val=0.05, all
conversations of a twentieth of the pictures go to STORE/val.

The data sets with attribute labels become stores of square pictures (--size=224) with STORE/val and STORE/test
(docs/faceinsight.md).

`facexbench` reads the multiple-choice questions of FaceXBench (docs/facexbench.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvjax import errors, startup
from fvjax.data import images
from fvjax.data.alignment import flags
from fvjax.data.progress import progress_bar
from fvjax.data.readers import (
    attribute_stores,
    conversations,
    facexbench_store,
    ijb,
    insightface_bin,
    odd_pairs,
    pair_list,
)
from fvjax.data.readers.benchmarks import cfp, lfw
from fvjax.data.readers.files import read_lines
from fvjax.data.readers.folders import folder
from fvjax.data.readers.recordio import conversion
from fvjax.data.stores import Store


def recordio(src: Path, dst: Path, **options: Any) -> Store:
    """Convert DIR/train.rec (or a .rec) as insightface packs it to a training store, and within it the store val."""
    with progress_bar() as bar:
        return conversion.convert(src, dst, bar=bar, **options)


def summary(store: Store) -> str:
    """Describe a new store in a few lines for the user."""
    counts, benchmarks = store.manifest["counts"], store.manifest["benchmarks"]
    lines = [
        f"{store.path}: {counts['images']} images of {counts['identities']} identities, split {store.split!r}",
        f"  {store.manifest['single_image_identities']} identities have a single image; data {store.data_hash[:16]}",
    ]
    recordio_counts = store.manifest.get("recordio")
    lines += _rejections(store.manifest, "records" if recordio_counts else "files")
    lines += _folder_notes(store.manifest.get("folders", {}))
    if a := store.manifest.get("alignment"):
        lines.append(_alignment(a))
    for name, b in benchmarks.items():
        lines.append(
            f"  benchmark {name}: {b['pairs']} pairs ({b['genuine']} genuine, {b['impostor']} impostor) in "
            f"{len(b['fold_sizes'])} folds; {b['failure_to_acquire']} images not acquired, "
            f"{b['pairs_dropped']} pairs dropped (policy {b['policy']})"
        )
        lines += [*odd_pairs.summary(b), *pair_list.summary(b)]
    lines += insightface_bin.summary(store)
    if recordio_counts and store.split == "train":
        lines += _recordio_summary(store, recordio_counts)
    return "\n".join(lines)


def _rejections(manifest: dict[str, Any], what: str) -> list[str]:
    """Describe what was left out: how much for which kind of reason, and the first of it."""
    if not (rejected := manifest["rejected"]):
        return []
    file, reason = rejected[0]["file"], rejected[0]["reason"]
    kinds = ", ".join(f"{n} {kind}" for kind, n in manifest["rejected_by_reason"].items())
    first = reason if what == "records" else f"{file}: {reason}"
    return [f"  {len(rejected)} {what} rejected, listed in manifest.json; first: {first}", f"    by reason: {kinds}"]


def _folder_notes(notes: dict[str, Any]) -> list[str]:
    """Describe what a user may not expect of a folder's identities."""
    lines = []
    if notes.get("not_chosen"):
        lines.append(f"  {notes['not_chosen']} identities not taken because of --exclude or --limit")
    if without := notes.get("without_picture"):
        lines.append(f"  {len(without)} identities without a usable picture; first: {without[0]}")
    if several := notes.get("of_several_folders"):
        name, folders = next(iter(several.items()))
        difference = "whose names differ only in Unicode form or blanks"
        lines.append(f"  {len(several)} identities of several folders {difference}; first: {name} ({len(folders)})")
    if groups := notes.get("differing_in_case"):
        lines.append(f"  names that differ only in case are taken for different people; first: {', '.join(groups[0])}")
    return lines


def _alignment(a: dict[str, Any]) -> str:
    several = "" if a["several_faces"] is None else f", {a['several_faces']} of them with several faces"
    without = f"{a['no_face']} without a face"
    if a["rows_without_picture"] is not None:
        without = f"{a['no_points']} without points"
        several = f", {a['rows_without_picture']} rows of the list name no picture here"
    return (
        f"  {a['aligned']} of {a['images']} photographs aligned ({a['by']}){several}; {without} "
        f"(policy {a['policy']}), {a['unreadable']} unreadable"
    )


def _recordio_summary(store: Store, counts: dict[str, Any]) -> list[str]:
    val = store.path / "val"
    return [
        summary(Store(val, "val")) if val.is_dir() else "no image is for validation",
        f"{counts['read']} records read = {counts['written']} written + {counts['rejected']} rejected; apart from "
        f"these {counts['headers']} headers, {counts['left_out']} left out",
    ]


def _parser(src_required: bool) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        src_required: False with --download, which supplies --src and --pairs.
    """
    parser = startup.Parser(
        prog="python -m fvjax.data.prepare",
        description="Make face stores from aligned 112x112 crops or photographs, and stores of conversations.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (
        ("folder", folder),
        ("recordio", recordio),
        ("lfw", lfw),
        ("cfp", cfp),
        ("pairs", pair_list.pairs),
    ):
        sub = commands.add_parser(name, help=(run.__doc__ or "").split("\n")[0], allow_abbrev=False)
        what = "the .rec, or the folder with train.rec" if name == "recordio" else "folder of the crops or photographs"
        sub.add_argument("--src", type=Path, required=src_required, help=what)
        sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
        sub.add_argument("--resize", action="store_true", help="resize square images of other sizes to 112x112")
        if name == "recordio":
            _add_recordio_flags(sub)
        else:
            flags.add_flags(sub, policy="drop" if name == "folder" else "fail")
        if name == "folder":
            _add_folder_flags(sub)
        elif name == "lfw":
            sub.add_argument("--pairs", type=Path, required=src_required, help="pairs.txt")
            sub.add_argument("--download", action="store_true", help="fetch LFW with scikit-learn, for --align")
        elif name == "cfp":
            sub.add_argument("--protocol", type=Path, required=src_required, help="folder with Pair_list_F.txt, Split")
        elif name == "pairs":
            sub.add_argument("--pairs", type=Path, required=True, help="CSV: a, b, same; perhaps fold, identity_a, _b")
            sub.add_argument("--name", help="of the benchmark; by default the list's name without its suffix")
        sub.set_defaults(run=run)
    insightface_bin.add_command(commands)
    conversations.add_command(commands)
    facexbench_store.add_command(commands)
    ijb.add_command(commands)
    attribute_stores.add_commands(commands)
    return parser


def _add_folder_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exclude", type=Path, help="TSV whose first column names identity folders to leave out")
    parser.add_argument("--limit", type=int, help="keep only the first so many identities")
    parser.add_argument("--split", help="of tfds:NAME, if it has several")
    parser.add_argument("--image-feature", help="of tfds:NAME, if it has several")
    parser.add_argument("--identity-feature", help="of tfds:NAME, if it has several")


def _add_recordio_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=int, help="keep only so many identities, those with the most images")
    parser.add_argument("--val", type=float, default=0.2, help="validation's part of each identity's images (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images for validation (0)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help=f"processes (as many as cores, here {cores})")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = vars(_parser("--download" not in argv).parse_args(argv))
    run, describe = options.pop("run"), options.pop("summary", summary)
    options.pop("command")
    images.silence_pillow()
    dst = options.pop("dst")
    try:
        with errors.naming(dst):
            if "landmarks" in options:
                flags.take_flags(options, read_lines)
            print(describe(run(options.pop("src"), dst, **options)))
    except (ValueError, OSError) as error:
        print(f"error: {errors.line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    startup.run(main)
