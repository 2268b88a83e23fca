"""Test 1:N search: the exact search against a plain one, and the command on folders, stores and single pictures."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fvjax import api, search
from fvjax.data import images, prepare, stores
from fvjax.data.face_collections import open_collection
from fvjax.evals import identification
from fvjax.parallel import cosine_search
from tests.test_ijb import embed
from tests.test_images import smooth_face

# ---- the exact search


def unit(rng, n: int, width: int = 12) -> np.ndarray:
    rows = rng.normal(size=(n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("blocks", [(1 << 15, 1 << 8), (32, 8)])
def test_the_search_is_exact(monkeypatch, blocks):
    """On eight devices, with the gallery in one block or in several, and the last one not full."""
    monkeypatch.setattr(cosine_search, "ENTRIES", blocks[0])
    monkeypatch.setattr(cosine_search, "PROBES", blocks[1])
    rng = np.random.default_rng(0)
    gallery, probes = unit(rng, 75), unit(rng, 21)
    gallery[70] = gallery[3]  # of equal entries the first comes first
    probes[0] = gallery[3]
    people, probe_people = rng.integers(0, 15, 75), rng.integers(0, 30, 21)
    found = cosine_search.nearest(probes, gallery, probe_people, people, top=4)
    scores = probes @ gallery.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    assert found.index.dtype == np.int64
    assert found.index[0, :2].tolist() == [3, 70]
    assert np.array_equal(found.index, order)
    assert found.score == pytest.approx(np.take_along_axis(scores, order, 1), abs=1e-6)
    expected = identification.outcomes(scores, probe_people, people)
    assert np.array_equal(found.rank, expected.rank)
    assert found.mate[expected.mated] == pytest.approx(expected.mate[expected.mated], abs=1e-6)
    assert np.isneginf(found.mate[~expected.mated]).all()


def test_a_small_gallery_is_listed_as_a_whole():
    rng = np.random.default_rng(1)
    gallery, probes = unit(rng, 3), unit(rng, 1)
    found = cosine_search.nearest(probes, gallery, np.array([0]), np.array([1, 2, 3]), top=9)
    assert sorted(found.index[0]) == [0, 1, 2]
    assert (found.rank.tolist(), np.isfinite(found.score).all()) == ([0], True)


def test_ties_with_other_people_count_against_the_search():
    gallery = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    probes = np.eye(3, dtype=np.float32)[[1, 0]]
    found = cosine_search.nearest(probes, gallery, np.array([7, 8]), np.array([8, 5, 7, 6]), top=1)
    assert found.rank.tolist() == [3, 1]  # persons 5 and 6 look as person 7 does


# ---- the command


@pytest.fixture
def model(monkeypatch):
    """Have every directory hold a model that needs no jax."""
    network = SimpleNamespace(embed=embed, encoder=SimpleNamespace(yes_no=()), run=None, batch_size=4)
    monkeypatch.setattr(api, "open_directory", lambda path: (network, {}))
    return network


def picture(path, person: int, shot: int, size: int = 112) -> None:
    face = 0.75 * smooth_face(person, size) + 0.25 * smooth_face(500 + shot, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode(face.astype(np.uint8), size=(size, size)))


@pytest.fixture
def folders(tmp_path):
    """Return a gallery of ten people, and probes of eight of them and of four others."""
    for person in range(10):
        picture(tmp_path / f"gallery/p{person:02d}/a.jpg", person, person)
    for person in (0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23):
        picture(tmp_path / f"probe/p{person:02d}/b.jpg", person, 50 + person)
    return tmp_path / "gallery", tmp_path / "probe"


def call(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = search.main([str(argument) for argument in arguments])
    except SystemExit as end:  # of wrong arguments
        code = end.code
    return code, *capsys.readouterr()


def refused(capsys, message: str, *arguments) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_folders_of_people(folders, model, tmp_path, capsys):
    gallery, probe = folders
    file = tmp_path / "r.json"
    flags = f"--gallery={gallery}", f"--probe={probe}", "--model=m", "--top=3", "--fpir=0.25", f"--json={file}"
    code, out, err = call(capsys, *flags)
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    vectors = {}
    for path in sorted([*gallery.rglob("*.jpg"), *probe.rglob("*.jpg")]):
        vector = embed(images.decode(path.read_bytes(), "")[None])[0].astype(float)
        vectors[path.relative_to(tmp_path).as_posix()] = vector / np.linalg.norm(vector)
    entries = [name for name in vectors if name.startswith("gallery")]
    mates, strangers = [], []
    for entry in result["results"]:
        scores = {name: vectors[name] @ vectors[f"probe/{entry['file']}"] for name in entries}
        best = sorted(entries, key=lambda name: -scores[name])[:3]
        assert [f"gallery/{each['file']}" for each in entry["candidates"]] == best
        assert [each["score"] for each in entry["candidates"]] == pytest.approx([scores[n] for n in best], abs=1e-5)
        own = f"gallery/{entry['identity']}/a.jpg"
        assert entry["rank"] == (1 + sum(scores[n] >= scores[own] for n in entries if n != own) if own in scores else 0)
        if own in scores:
            mates.append((entry["rank"], scores[own]))
        else:
            strangers.append(max(scores.values()))
    figures = result["figures"]
    assert (figures["mated"], figures["non_mated"], len(mates), len(strangers)) == (8, 4, 8, 4)
    assert figures["rank-1"]["hits"] == sum(rank == 1 for rank, _ in mates)
    limit = sorted(strangers)[-2]  # one of four strangers may reach the threshold
    assert figures["fnir@fpir=0.25"]["threshold"] == pytest.approx(limit, abs=1e-5)
    assert figures["fnir@fpir=0.25"]["value"] == np.mean([rank > 1 or score <= limit for rank, score in mates])
    assert sum(entry["above_threshold"] for entry in result["results"] if entry["rank"] == 0) == 1
    assert len(result["det"]) == 4
    assert result["gallery"] | {"left_out": [], "left_out_by_reason": {}} == result["gallery"]
    assert (result["gallery"]["pictures"], result["gallery"]["identities"]) == (10, 10)
    assert f"gallery {gallery}: 10 faces of 10 people\n" in out
    assert "12 probes: 8 of people in the gallery, 4 of others" in out
    assert "FNIR at FPIR 0.25: " in out
    assert f"  1. {result['results'][0]['candidates'][0]['score']:.4f}  p00/a.jpg" in out


def test_too_few_strangers_for_a_threshold(folders, model):
    result = search.search(folders[0], folders[1], "m")
    assert result["figures"]["fnir@fpir=0.01"]["threshold"] is None
    assert (result["figures"]["fnir@fpir=0.01"]["non_mated"], result["figures"]["fnir@fpir=0.01"]["needed"]) == (4, 100)
    assert {entry["above_threshold"] for entry in result["results"]} == {None}
    assert [len(entry["candidates"]) for entry in result["results"]] == [5] * 12


def test_stores_give_what_their_folders_give(folders, model, tmp_path):
    paths = []
    for folder in folders:
        paths.append(tmp_path / f"{folder.name}_store")
        assert prepare.main(["folder", f"--src={folder}", f"--dst={paths[-1]}"]) == 0
    plain, stored = search.search(folders[0], folders[1], "m"), search.search(paths[0], paths[1], "m")
    for key in ("results", "figures", "det"):
        assert stored[key] == plain[key]


def test_probes_that_are_in_the_gallery(folders, model, tmp_path, capsys):
    gallery, probe = folders
    shutil.copy(gallery / "p03/a.jpg", probe / "p03/copy.jpg")
    Image.open(gallery / "p04/a.jpg").save(probe / "p05/other.png")  # the same pixels in another file
    flags = f"--gallery={gallery}", f"--probe={probe}", "--model=m"
    message = "2 of 14 pictures are in the gallery too and would find themselves, the first: p03/copy.jpg is p03/a.jpg"
    refused(capsys, message, *flags)
    code, out, _ = call(capsys, *flags, "--drop-copies")
    assert code == 0
    assert "2 probes are pictures of the gallery; the first: p03/copy.jpg is p03/a.jpg" in out
    assert "12 faces of 12 people; 2 files left out: 2 copy of a gallery picture" in out
    refused(capsys, "all 10 pictures are in the gallery too", *flags[::2], f"--probe={gallery}", "--drop-copies")
    # Without people there is nothing to measure, and a copy is an answer.
    result = search.search(gallery, gallery / "p03/a.jpg", "m")
    assert result["copies"] == [{"probe": "a.jpg", "gallery": "p03/a.jpg"}]
    assert result["results"][0]["candidates"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_pictures_of_nobody_in_particular(folders, model, tmp_path, capsys):
    gallery, _ = folders
    loose = tmp_path / "loose"
    picture(loose / "x.jpg", 3, 70)
    picture(loose / "y.jpg", 4, 71)
    (loose / ".hidden.jpg").write_bytes(b"")
    (loose / "notes.txt").write_text("who?")
    result = search.search(gallery, loose, "m")
    assert (result["figures"], result["det"]) == (None, None)
    assert result["no_figures"] == f"nobody says who is who in {loose}"
    assert [entry["candidates"][0]["identity"] for entry in result["results"]] == ["p03", "p04"]
    assert {entry["rank"] for entry in result["results"]} == {None}
    assert result["probe"]["left_out_by_reason"] == {"hidden": 1, "not a picture": 1}
    assert (
        "no figures: nobody says who is who in"
        in call(capsys, f"--gallery={gallery}", f"--probe={loose}", "--model=m")[1]
    )


def test_what_is_left_out_is_counted(folders, model, tmp_path, monkeypatch):
    gallery, probe = folders
    (probe / "p00/broken.jpg").write_bytes(b"no picture")
    (probe / "p01/notes.txt").write_text("x")
    picture(probe / "p02/photograph.jpg", 2, 80, size=119)
    picture(tmp_path / "probe/loose.jpg", 2, 81)
    monkeypatch.setattr("fvjax.data.alignment.faces._detector", lambda name: lambda photograph: [])
    result = search.search(gallery, probe, "m")
    reasons = {"cannot be read as an image": 1, "not a picture": 1, "no face found": 1, "in no identity's folder": 1}
    assert result["probe"]["left_out_by_reason"] == reasons
    assert {"file": "p02/photograph.jpg", "reason": "no face found: in 119x119 pixels"} in result["probe"]["left_out"]
    assert result["probe"]["pictures"] == 12


def test_people_of_a_bin_are_nobodys(tmp_path):
    record = [(images.encode(smooth_face(i)), f"derived {i}", f"{i}.jpg") for i in (0, 0, 1, 1)]
    with stores.Writer(tmp_path / "s", split="test", sources=["x.bin"]) as writer:
        for jpeg, identity, source in record:
            writer.add(jpeg, identity, source)
        a, b, labels = np.array([0, 2, 0]), np.array([1, 3, 2]), np.asarray(writer.labels)
        pairs = stores.Pairs(a, b, labels[a] == labels[b], np.zeros(3, np.int64), labels[a], labels[b])
        writer.add_pairs("mine", pairs, facts={"identities": "derived from genuine pairs"})
    opened = open_collection(tmp_path / "s")
    assert not opened.has_identities
    assert [face.identity for face in opened.faces()] == [None] * 4


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--top=0", "--top=0: at least one"),
        ("--fpir=1", "--fpir=1: choose a rate above 0 and below 1"),
        ("--gallery=nowhere", "nowhere: no such file or folder"),
        ("--probes=x", "unrecognized arguments: --probes=x; see python -m fvjax.search --help"),
    ],
)
def test_mistakes(folders, model, capsys, flag, message):
    refused(capsys, message, f"--gallery={folders[0]}", f"--probe={folders[1]}", "--model=m", flag)


def test_nothing_to_search_for_or_with(folders, model, tmp_path, capsys, monkeypatch):
    gallery, probe = folders
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/x.txt").write_text("x")
    flags = f"--gallery={gallery}", "--model=m"
    refused(
        capsys, "empty: not one usable picture; the first of 1 left out: x.txt", *flags, f"--probe={tmp_path}/empty"
    )
    for file in probe.rglob("*.jpg"):
        file.write_bytes(b"x")
    refused(capsys, "probe: not one usable picture; the first of 12 left out: p00/b.jpg", *flags, f"--probe={probe}")
    one = gallery / "p00/a.jpg"
    monkeypatch.setattr(model, "embed", lambda faces: 0 * embed(faces))
    refused(capsys, "gallery: the embedding of p00/a.jpg is zero or not finite", *flags, f"--probe={one}")
    model.encoder.yes_no = (1, 2)
    refused(capsys, "m answers Yes or No about pairs of faces, but a search needs", *flags, f"--probe={one}")


def test_mirrored_pictures_are_added_as_in_the_evaluation(folders, model, monkeypatch):
    run = SimpleNamespace(config=SimpleNamespace(eval=SimpleNamespace(flip_sum=False)))
    model.run = run
    plain = search.search(folders[0], folders[1], "m")
    monkeypatch.setattr(api, "open_directory", lambda path: (model, {"flip_sum": True}))
    flipped = search.search(folders[0], folders[1], "m")
    assert (plain["flip_sum"], flipped["flip_sum"]) == (False, True)
    assert plain["results"] != flipped["results"]
