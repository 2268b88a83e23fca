"""Make face stores from aligned crops, or from photographs.

    python -m fvjax.data.prepare folder --src=DIR --dst=STORE              DIR/IDENTITY/**/*.jpg -> training store
    python -m fvjax.data.prepare recordio --src=DIR --dst=STORE            DIR/train.rec -> stores STORE, STORE/val
    python -m fvjax.data.prepare lfw --src=DIR --pairs=pairs.txt --dst=STORE   DIR/NAME/NAME_0001.jpg -> benchmark lfw
    python -m fvjax.data.prepare cfp --src=DIR --protocol=DIR --dst=STORE  DIR/001/{frontal,profile}/01.jpg -> ff, fp
    python -m fvjax.data.prepare bin --src=FILE.bin --dst=STORE            insightface's lfw.bin -> benchmark lfw
    python -m fvjax.data.prepare folder --src=tfds:NAME --dst=STORE        a prepared TFDS dataset -> training store

Images are 112x112 RGB. JPEGs of that size are stored byte for byte; other formats, CMYK and images that EXIF says are
to be turned are re-encoded, upright and in RGB.

    --align[=mtcnn|scrfd]    the images are photographs of any size: find the face nearest the centre and align it
    --landmarks=FILE.tsv     the same with points that are known: file, five points x y, tab-separated
    --policy=fail|drop|fallback   what becomes of images without a face (fallback: their centre) and, fallback aside, of
                             missing and broken ones; counted in the manifest, and as failure to acquire in every result
    lfw --download --align   fetches LFW by way of scikit-learn, instead of --src and --pairs
Exit code 0, or 2 with one line that says what is wrong; nothing is left at --dst then.

`recordio` reads MXNet RecordIO (fvjax/data/recordio.py). Of each identity's images a part (--val) goes to STORE/val, a
store with the split "val" whose identities have the numbers they have in STORE. --top keeps the identities with the
most images. It works on all cores (--workers); the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fvjax import errors
from fvjax.data import align, images, insightface_bin, recordio, tfds_source
from fvjax.data.store import Pairs, Store, Writer


class NamedPair(NamedTuple):
    """A line of a protocol: two files relative to --src, each with its identity, and the fold (from 0)."""

    a: str
    b: str
    identity_a: str
    identity_b: str
    fold: int


def folder(
    src: Path,
    dst: Path,
    *,
    exclude: Path | None,
    limit: int | None,
    resize: bool,
    policy: str,
    aligner: align.Aligner | None = None,
    split: str | None = None,
    image_feature: str | None = None,
    identity_feature: str | None = None,
) -> Store:
    """DIR/identity/**/*.{jpg,png,…} or tfds:NAME -> a store with the split "train", identities sorted by name.

    Files that are no images, or broken, are left out and listed in the manifest, unless ``policy`` is "fail"; a size
    other than 112x112 is an error unless ``resize`` or ``aligner``.

    Args:
        exclude: a tab-separated file whose first column names identity folders to leave out ('#' starts a comment).
        limit: keep only the first so many identities.
        split, image_feature, identity_feature: of a TFDS dataset, see :class:`fvjax.data.tfds_source.Source`.
    Raises:
        ValueError: nothing usable, a wrong size, or an excluded identity that ``src`` does not have.
    """
    given = split, image_feature, identity_feature
    told = str(src).removeprefix("tfds:")
    if told == str(src) and any(given):
        raise ValueError(f"--split, --image-feature and --identity-feature are of tfds:NAME, and --src is {src}")
    source = tfds_source.Source(told, *given) if told != str(src) else None
    people = source.identities if source else [e.name for e in os.scandir(_directory(src)) if e.is_dir()]
    names = sorted(set(people))
    if limit is not None and limit < 1:
        raise ValueError(f"--limit={limit}: at least one identity must be left")
    if exclude is not None:
        left_out = {line.split("\t")[0].strip() for _, line in _lines(exclude)}
        if unknown := sorted(left_out - set(names)):
            raise ValueError(
                f"{exclude}: {unknown[0]!r} (and {len(unknown) - 1} more) is no folder of {src}; "
                "the first column must hold folder names, correct or remove the line"
            )
        names = [name for name in names if name not in left_out]
    if source:
        if aligner:
            raise ValueError(
                f"--src={src}: a TFDS dataset's faces are taken as they are; leave out --align, --landmarks"
            )
        return _tfds(source, dst, names[:limit], resize, policy)
    files = [
        os.path.relpath(os.path.join(root, file), src)
        for name in names[:limit]
        for root, _, found in sorted(os.walk(src / name, followlinks=True))
        for file in sorted(found)
    ]
    if not files:
        raise ValueError(f"{src}: not one usable image; expected files such as {src / 'IDENTITY' / '1.jpg'}")
    with (
        Writer(dst, split="train", sources=[str(src)]) as writer,
        align.crops(aligner, src, files, writer.info) as crops,
    ):
        for file in _progress(files):
            _add(writer, src, file, file.split(os.sep)[0], resize, policy != "fail", next(crops))
    return Store(dst)


def _tfds(source: tfds_source.Source, dst: Path, names: list[str], resize: bool, policy: str) -> Store:
    with Writer(dst, split="train", sources=[source.name]) as writer:
        for i, name in source.records(names):
            where = f"{source.split}#{i}"
            try:
                writer.add(images.to_jpeg(source.image(i), where, resize), name, where)
            except images.WrongSize as error:
                raise ValueError(f"{source.name}: {error}") from error
            except ValueError as error:
                if policy == "fail":
                    raise ValueError(f"{source.name}: {error}") from error
                writer.reject(where, str(error))
    return Store(dst)


def from_recordio(src: Path, dst: Path, **options: Any) -> Store:
    """DIR/train.rec (or a .rec) as insightface packs it -> a training store, and in it the store val."""
    with _bar() as bar:
        return recordio.convert(src, dst, bar=bar, **options)


def lfw(src: Path, dst: Path, *, pairs: Path, policy: str, resize: bool, aligner: align.Aligner | None = None) -> Store:
    """DIR/NAME/NAME_0001.jpg and the official pairs.txt -> a store with the benchmark "lfw"."""
    return _benchmarks(_directory(src), dst, {"lfw": read_lfw(pairs)}, [str(src), str(pairs)], policy, resize, aligner)


def cfp(
    src: Path, dst: Path, *, protocol: Path, policy: str, resize: bool, aligner: align.Aligner | None = None
) -> Store:
    """DIR/ID/{frontal,profile}/NN.jpg and the official Protocol folder -> a store with the benchmarks "ff" and "fp"."""
    protocols = {"ff": read_cfp(protocol, "FF"), "fp": read_cfp(protocol, "FP")}
    return _benchmarks(_directory(src), dst, protocols, [str(src), str(protocol)], policy, resize, aligner)


def read_lfw(file: Path) -> list[NamedPair]:
    """Parse LFW's pairs.txt: "folds n", then per fold n lines "name i j" and n lines "name i name j"."""
    (_, head), *lines = _lines(file)
    try:
        folds, n = [int(x) for x in head.split()] if len(head.split()) == 2 else (1, int(head))
    except ValueError:
        folds = n = 0
    if min(folds, n) < 1:
        raise ValueError(f"{file}:1: expected 'folds pairs' such as '10\\t300', got {head!r}")
    if len(lines) != 2 * folds * n:
        raise ValueError(f"{file}: {len(lines)} pairs, but its first line promises 2 x {folds} x {n}")
    out = []
    for i, (number, line) in enumerate(lines):
        fold, within = divmod(i, 2 * n)
        cells = line.split()
        if len(cells) != (3 if within < n else 4) or not (cells[1] + cells[-1]).isdecimal():
            kind = "same: 'name i j'" if within < n else "different: 'name i name j'"
            raise ValueError(f"{file}:{number}: expected a pair of the kind {kind}, got {line!r}")
        a, b = cells[0], cells[0] if within < n else cells[2]
        if within >= n and a == b:
            raise ValueError(f"{file}:{number}: {line!r} is among the different pairs of its fold, but is one person")
        out.append(NamedPair(f"{a}/{a}_{int(cells[1]):04d}.jpg", f"{b}/{b}_{int(cells[-1]):04d}.jpg", a, b, fold))
    return out


def read_cfp(protocol: Path, kind: str) -> list[NamedPair]:
    """Parse CFP's Protocol folder; ``kind`` is "FF" or "FP". In FP the first index is of the frontal list."""
    lists = []
    for letter in kind:
        file = protocol / f"Pair_list_{letter}.txt"
        paths = {}
        for number, line in _lines(file):
            cells = line.split()
            if len(cells) != 2 or len(parts := cells[1].split("/")[-3:]) != 3:
                raise ValueError(f"{file}:{number}: expected 'index …/ID/view/NN.jpg', got {line!r}")
            paths[cells[0]] = parts
        lists.append(paths)
    out = []
    folds = sorted(entry.name for entry in os.scandir(_directory(protocol / "Split" / kind)) if entry.is_dir())
    for fold, folder_name in enumerate(folds):
        for name in ("same", "diff"):
            file = protocol / "Split" / kind / folder_name / f"{name}.txt"
            for number, line in _lines(file):
                cells = line.split(",")
                if len(cells) != 2 or any(cell.strip() not in paths for cell, paths in zip(cells, lists)):
                    raise ValueError(f"{file}:{number}: expected two indices of the pair lists, got {line!r}")
                a, b = (paths[cell.strip()] for cell, paths in zip(cells, lists))
                if (a[0] == b[0]) != (name == "same"):
                    raise ValueError(f"{file}:{number}: {line!r} are identities {a[0]} and {b[0]}, in {name}.txt")
                out.append(NamedPair("/".join(a), "/".join(b), a[0], b[0], fold))
    if not out:
        raise ValueError(f"{protocol / 'Split' / kind}: no folds here; expected 01/same.txt, 01/diff.txt, …")
    return out


def _benchmarks(
    src: Path,
    dst: Path,
    protocols: dict[str, list[NamedPair]],
    sources: list[str],
    policy: str,
    resize: bool,
    aligner: align.Aligner | None,
) -> Store:
    """Store every image the protocols name, once, sorted by file name, and the pairs as record numbers."""
    identity = {}
    for pair in (pair for pairs in protocols.values() for pair in pairs):
        identity |= {pair.a: pair.identity_a, pair.b: pair.identity_b}
    missing = [file for file in identity if not (src / file).is_file()]
    if missing and policy != "drop":
        raise ValueError(
            f"{src / missing[0]}: missing, and {len(missing) - 1} more of the {len(identity)} images that the pairs "
            "name; supply them, or leave out their pairs with --policy=drop"
        )
    files = sorted(identity)
    with Writer(dst, split="test", sources=sources) as writer, align.crops(aligner, src, files, writer.info) as crops:
        number: dict[str, int] = {}
        for file in _progress(files):
            if (i := _add(writer, src, file, identity[file], resize, policy == "drop", next(crops))) is not None:
                number[file] = i
        no_face = aligner.no_face if aligner else ()
        for name, pairs in protocols.items():
            kept = [p for p in pairs if p.a in number and p.b in number]
            used = {file for p in pairs for file in (p.a, p.b)}
            sizes = np.bincount([p.fold for p in kept], minlength=pairs[-1].fold + 1)
            if not sizes.all():
                raise ValueError(f"{src}: no pair of fold {int(sizes.argmin()) + 1} of {name} is left; supply images")
            a, b = (np.asarray([number[file] for file in side], np.int64) for side in zip(*[(p.a, p.b) for p in kept]))
            labels = np.asarray(writer.labels)
            fold = np.asarray([p.fold for p in kept], np.int64)
            table = Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b])
            writer.add_pairs(
                name,
                table,
                policy=policy,
                failure_to_acquire=len((used - number.keys()) | used.intersection(no_face)),
                pairs_dropped=len(pairs) - len(kept),
            )
    return Store(dst, "test")


def _add(
    writer: Writer, src: Path, file: str, identity: str, resize: bool, drop: bool, crop: align.Crop | None
) -> int | None:
    """Store one file, or its crop, and return the record's number; None (and a rejection) if it cannot be had and
    ``drop``.
    """
    try:
        if not file.lower().endswith(images.SUFFIXES):
            raise ValueError(f"{file}: suffix is none of {', '.join(images.SUFFIXES)}")
        if not (src / file).is_file():
            raise ValueError(f"{file}: missing")
        if crop is None:
            return writer.add(images.to_jpeg((src / file).read_bytes(), file, resize), identity, file)
        if crop.jpeg is None:
            raise ValueError(crop.problem)
        return writer.add(crop.jpeg, identity, file)
    except images.WrongSize as error:  # of the whole source more likely than of one file, so never dropped
        raise ValueError(f"{src}: {error}") from error
    except ValueError as error:
        if not drop:
            raise ValueError(f"{src}: {error}; supply it, or leave out its pairs with --policy=drop") from error
        writer.reject(file, str(error))
        return None


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    return path


def _lines(file: Path) -> list[tuple[int, str]]:
    """(line number, line) of a text file without blank lines and '#' comments."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error})") from error
    out = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not out:
        raise ValueError(f"{file}: empty")
    return out


def _progress(files: Sequence[str]) -> Iterable[str]:
    with _bar() as bar:
        yield from bar.track(files, description="faces")


def _bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    columns, console = (*columns, TextColumn("left"), TimeRemainingColumn()), Console(stderr=True)
    # a log or a script gets nothing but the one line of an error
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _summary(store: Store) -> str:
    counts, benchmarks = store.manifest["counts"], store.manifest["benchmarks"]
    lines = [
        f"{store.path}: {counts['images']} images of {counts['identities']} identities, split {store.split!r}",
        f"  {store.manifest['single_image_identities']} identities have a single image; data {store.data_hash[:16]}",
    ]
    made = store.manifest.get("recordio")
    if rejected := store.manifest["rejected"]:
        first = f"listed in manifest.json; first: {rejected[0]['reason']}"
        lines.append(f"  {len(rejected)} {'records' if made else 'files'} rejected, {first}")
    if a := store.manifest.get("alignment"):
        several = "" if a["several_faces"] is None else f", {a['several_faces']} of them with several faces"
        lines.append(
            f"  {a['aligned']} of {a['images']} photographs aligned ({a['by']}){several}; "
            f"{a['no_face']} without a face (policy {a['policy']}), {a['unreadable']} unreadable"
        )
    for name, b in benchmarks.items():
        lines.append(
            f"  benchmark {name}: {b['pairs']} pairs ({b['genuine']} genuine, {b['impostor']} impostor) in "
            f"{len(b['fold_sizes'])} folds; {b['failure_to_acquire']} images not acquired, "
            f"{b['pairs_dropped']} pairs dropped (policy {b['policy']})"
        )
    lines += insightface_bin.summary(store)
    if made and store.split == "train":
        val = store.path / "val"
        lines += [_summary(Store(val, "val"))] if val.is_dir() else ["no image is for validation"]
        lines.append(
            f"{made['read']} records read = {made['written']} written + {made['rejected']} rejected; apart from these "
            f"{made['headers']} headers, {made['left_out']} left out"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fvjax.data.prepare",
        description="Make face stores from aligned 112x112 crops or from photographs.",
        allow_abbrev=False,
    )
    argv = sys.argv[1:] if argv is None else argv
    ours = "--download" not in argv  # which brings --src and --pairs
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("folder", folder), ("recordio", from_recordio), ("lfw", lfw), ("cfp", cfp)):
        sub = commands.add_parser(name, help=(run.__doc__ or "").split("\n")[0], allow_abbrev=False)
        what = "the .rec, or the folder with train.rec" if name == "recordio" else "folder of the crops or photographs"
        sub.add_argument("--src", type=Path, required=ours, help=what)
        sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
        sub.add_argument("--resize", action="store_true", help="bring square images of other sizes to 112x112")
        if name != "recordio":
            align.add_flags(sub, policy="drop" if name == "folder" else "fail")
        if name == "folder":
            sub.add_argument("--exclude", type=Path, help="TSV whose first column names identity folders to leave out")
            sub.add_argument("--limit", type=int, help="keep only the first so many identities")
            sub.add_argument("--split", help="of tfds:NAME, if it has several")
            sub.add_argument("--image-feature", help="of tfds:NAME, if it has several")
            sub.add_argument("--identity-feature", help="of tfds:NAME, if it has several")
        elif name == "recordio":
            sub.add_argument("--top", type=int, help="keep only so many identities, those with the most images")
            sub.add_argument("--val", type=float, default=0.2, help="validation's part of each identity's images (0.2)")
            sub.add_argument("--seed", type=int, default=0, help="which images these are (0)")
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            sub.add_argument("--workers", type=int, default=cores, help=f"processes (as many as cores, here {cores})")
        else:
            what = ("--pairs", "pairs.txt") if name == "lfw" else ("--protocol", "folder with Pair_list_F.txt, Split")
            sub.add_argument(what[0], type=Path, required=ours, help=what[1])
        if name == "lfw":
            sub.add_argument("--download", action="store_true", help="fetch LFW by way of scikit-learn, for --align")
        sub.set_defaults(run=run)
    insightface_bin.add_command(commands)
    options = vars(parser.parse_args(argv))
    run = options.pop("run")
    options.pop("command")
    # we refuse far smaller images, in one line
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    dst = options.pop("dst")
    try:
        with errors.naming(dst):
            if "align" in options:
                align.take_flags(options, _lines)
            print(_summary(run(options.pop("src"), dst, **options)))
    except (ValueError, OSError) as error:
        print(f"error: {errors.line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
