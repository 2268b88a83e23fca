"""Test folders as people have them: leftovers, links, unreadable places, copies, and names in several forms."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvjax.data import names, picture_files, stores
from fvjax.data.readers import picture_tree, tfds_source
from fvjax.data.readers.picture_tree import PictureTree
from tests.test_images import file_bytes, smooth_face
from tests.test_prepare import fails, run

NFC, NFD = (unicodedata.normalize(form, "José_Müller") for form in ("NFC", "NFD"))


def put(path: Path, seed: int, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        file_bytes(Image.fromarray(smooth_face(seed)), kind, **({"quality": 95} if kind == "JPEG" else {}))
    )
    return path


@pytest.fixture
def src(tmp_path):
    """Return a folder with three identities of two pictures each."""
    for who in range(3):
        for i in range(2):
            put(tmp_path / f"src/id{who}/{i}.jpg", 10 * who + i)
    return tmp_path / "src"


@pytest.fixture
def convert(src, tmp_path, capsys):
    """Return a function that converts the folder and returns the store and what was printed."""

    def convert(*flags):
        dst = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
        code, out, err = run(capsys, "folder", f"--src={src}", f"--dst={dst}", *flags)
        assert code == 0, err
        return stores.Store(dst), out

    return convert


def reasons(store):
    return {entry["file"]: entry["reason"].partition(":")[0] for entry in store.manifest["rejected"]}


def test_leftovers_of_tools_are_no_identities(src, convert):
    put(src / ".ipynb_checkpoints/0-checkpoint.jpg", 0)  # a copy of id0/0.jpg
    put(src / "id2/.ipynb_checkpoints/0-checkpoint.jpg", 20)
    put(src / "@eaDir/id0/0.jpg", 0)
    put(src / "__MACOSX/id1/._0.jpg", 7).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100))
    (src / ".DS_Store").write_bytes(b"x")
    (src / "id0/Thumbs.db").write_bytes(b"x")
    put(src / "id0/.hidden.jpg", 55)
    put(src / "id1/$RECYCLE.BIN/1.jpg", 56)
    (src / ".git").mkdir()
    store, out = convert()
    assert store.identities == ["id0", "id1", "id2"]
    assert store.sources == [f"id{who}/{i}.jpg" for who in range(3) for i in range(2)]
    assert reasons(store) == {
        ".DS_Store": "hidden",
        ".ipynb_checkpoints/0-checkpoint.jpg": "hidden",
        "@eaDir/id0/0.jpg": "a tool's files",
        "__MACOSX/id1/._0.jpg": "a tool's files",
        "id0/.hidden.jpg": "hidden",
        "id0/Thumbs.db": "a tool's files",
        "id1/$RECYCLE.BIN/1.jpg": "a tool's files",
        "id2/.ipynb_checkpoints/0-checkpoint.jpg": "hidden",
    }
    assert store.manifest["rejected_by_reason"] == {"hidden": 4, "a tool's files": 4}
    assert store.manifest["counts"] == {"images": 6, "identities": 3, "rejected": 8}
    assert "8 files rejected, listed in manifest.json; first: .DS_Store: hidden" in out
    assert "by reason: 4 hidden, 4 a tool's files" in out


def test_what_lies_beside_the_identities_is_counted(src, convert, tmp_path, capsys):
    put(src / "loose.jpg", 90)
    (src / "README").write_text("x")
    put(src / "  /1.jpg", 91)
    (src / "empty").mkdir()
    (src / "id0/notes.txt").write_text("x")
    (src / "id0/movie.mp4").write_bytes(b"x")
    store, out = convert()
    assert reasons(store) == {
        "  /1.jpg": "no name",
        "README": "not a picture",
        "loose.jpg": "in no identity's folder",
        "id0/movie.mp4": "not a picture",
        "id0/notes.txt": "not a picture",
    }
    assert store.manifest["folders"]["without_picture"] == ["empty"]
    assert "1 identities without a usable picture; first: empty" in out
    (tmp_path / "out").mkdir()
    fails(capsys, tmp_path / "out/s", "  /1.jpg: no name", "folder", f"--src={src}", "--policy=fail")


def test_a_strict_policy_still_passes_over_leftovers(src, convert):
    (src / ".DS_Store").write_bytes(b"x")
    (src / "id1/again.jpg").symlink_to(src / "id1/0.jpg")
    store, _ = convert("--policy=fail")
    assert store.manifest["rejected_by_reason"] == {"hidden": 1, "link": 1}


def test_a_folder_of_pictures_without_identities_says_so(tmp_path, capsys):
    put(tmp_path / "src/1.jpg", 1)
    (tmp_path / "out").mkdir()
    message = "not one usable image; expected files such as"
    fails(capsys, tmp_path / "out/s", message, "folder", f"--src={tmp_path / 'src'}")
    fails(capsys, tmp_path / "out/s", "1.jpg: in no identity's folder", "folder", f"--src={tmp_path / 'src'}")


def test_what_is_not_chosen_is_counted(convert, tmp_path):
    (tmp_path / "leave.tsv").write_text("id0\n")
    store, out = convert(f"--exclude={tmp_path / 'leave.tsv'}", "--limit=1")
    assert (store.identities, store.manifest["folders"]["not_chosen"]) == (["id1"], 2)
    assert "2 identities not taken because of --exclude or --limit" in out


# ---- links


def test_links_lead_to_a_picture_once(src, convert, tmp_path):
    put(tmp_path / "elsewhere/deep/1.jpg", 70)
    (src / "id0/a_link.jpg").symlink_to(src / "id2/0.jpg")  # sorts before its target
    (src / "id0/loop").symlink_to(src)
    (src / "id1/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (src / "id1/itself.jpg").symlink_to(src / "id1/itself.jpg")
    (src / "id1/more").symlink_to(tmp_path / "elsewhere")
    (src / "id1/more_again").symlink_to(tmp_path / "elsewhere/deep")
    (src / "nickname").symlink_to(src / "id2")
    store, _ = convert()
    assert store.sources == [
        *("id0/0.jpg", "id0/1.jpg", "id1/0.jpg", "id1/1.jpg", "id1/more/deep/1.jpg", "id2/0.jpg", "id2/1.jpg"),
    ]
    assert reasons(store) == {
        "id0/a_link.jpg": "link",
        "id0/loop": "link",
        "id1/gone.jpg": "link to nothing",
        "id1/itself.jpg": "link to nothing",
        "id1/more_again": "link",
        "nickname": "link",
    }
    assert store.manifest["folders"]["without_picture"] == ["nickname"]


def test_links_do_not_bring_excluded_people_back(src, convert, tmp_path):
    (src / "id1/all").symlink_to(src)
    (src / "id1/friend").symlink_to(src / "id0")
    (src / "id1/one.jpg").symlink_to(src / "id0/0.jpg")
    (tmp_path / "leave.tsv").write_text("id0\n")
    store, _ = convert(f"--exclude={tmp_path / 'leave.tsv'}")
    assert store.sources == ["id1/0.jpg", "id1/1.jpg", "id2/0.jpg", "id2/1.jpg"]
    assert store.manifest["rejected_by_reason"] == {"link": 3}


def test_pictures_in_a_hidden_store_are_taken_through_their_links(tmp_path):
    """git-annex and DataLad keep files there, each with one link in its place."""
    target = put(tmp_path / "src/.git/annex/objects/blob.jpg", 1)
    (tmp_path / "src/ann").mkdir()
    (tmp_path / "src/ann/1.jpg").symlink_to(os.path.relpath(target, tmp_path / "src/ann"))
    assert PictureTree(tmp_path / "src", ["ann"]).files == ["ann/1.jpg"]


# ---- unreadable places


def test_unreadable_places_are_counted(src, convert, monkeypatch):
    put(src / "id1/locked/1.jpg", 80)
    put(src / "id1/denied.jpg", 81)
    os.mkfifo(src / "id2/pipe.jpg")
    scan, read = os.scandir, Path.read_bytes

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def read_bytes(path):
        if path.name == "denied.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    store, _ = convert()
    assert len(store) == 6
    assert {entry["file"]: entry["reason"] for entry in store.manifest["rejected"]} == {
        "id1/denied.jpg": "unreadable file: Permission denied",
        "id1/locked": "unreadable folder: Permission denied",
        "id2/pipe.jpg": "not a file: a pipe, socket or device",
    }


def test_reading_never_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="not a file: it is a folder, pipe or device"):
        picture_files.read(tmp_path, "pipe.jpg")


# ---- copies


def test_no_picture_is_taken_twice(src, convert):
    put(src / "id0/copy.jpg", 0)
    put(src / "id1/of_another.jpg", 0)
    put(src / "id2/2.png", 77, "PNG")
    put(src / "id2/3.bmp", 77, "BMP")  # the same pixels
    (src / "id2/4.jpg").write_bytes((src / "id2/0.jpg").read_bytes() + b"a video")
    store, _ = convert()
    assert len(store) == 7
    assert {entry["file"]: entry["reason"] for entry in store.manifest["rejected"]} == {
        "id0/copy.jpg": "copy: the same picture as id0/0.jpg",
        "id1/of_another.jpg": "copy under another identity: the same picture as id0/0.jpg, which is taken",
        "id2/3.bmp": "copy: the same picture as id2/2.png",
        "id2/4.jpg": "copy: the same picture as id2/0.jpg",
    }
    assert store.manifest["rejected_by_reason"] == {"copy": 3, "copy under another identity": 1}


# ---- names


def test_names_in_two_forms_are_one_identity(tmp_path, capsys):
    for i in (1, 2):
        put(tmp_path / f"src/{NFC}/{i}.jpg", i)
        put(tmp_path / f"src/{NFD}/{i}.jpg", i + 2)
        put(tmp_path / f"src/bob/{i}.jpg", 20 + i)
        put(tmp_path / f"src/Bob/{i}.jpg", 30 + i)
        put(tmp_path / f"src/Ann Lee/{i}.JPG", 40 + i)
    put(tmp_path / "src/Ann Lee /3.Jfif ", 43)
    code, out, _ = run(capsys, "folder", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 's'}")
    store = stores.Store(tmp_path / "s")
    assert (code, store.identities) == (0, ["Ann Lee", "Bob", NFC, "bob"])
    assert np.bincount(store.labels).tolist() == [3, 2, 4, 2]
    assert store.sources[2] == "Ann Lee /3.Jfif "
    assert store.manifest["counts"]["rejected"] == 0
    notes = store.manifest["folders"]
    assert notes["of_several_folders"] == {"Ann Lee": ["Ann Lee", "Ann Lee "], NFC: [NFD, NFC]}
    assert notes["differing_in_case"] == [["Bob", "bob"]]
    assert (
        "2 identities of several folders whose names differ only in Unicode form or blanks; first: Ann Lee (2)" in out
    )
    assert "names that differ only in case are taken for different people; first: Bob, bob" in out


@pytest.mark.parametrize(("listed", "on_disk"), [(NFC, NFD), (NFD, NFC), (f"{NFC} ", NFC)])
def test_an_excluded_name_may_have_another_form(src, convert, tmp_path, listed, on_disk):
    put(src / f"{on_disk}/1.jpg", 60)
    (tmp_path / "leave.tsv").write_text(f"{listed}\n")
    store, _ = convert(f"--exclude={tmp_path / 'leave.tsv'}")
    assert store.identities == ["id0", "id1", "id2"]


def test_names_that_are_no_plain_text_are_escaped(src, convert):
    picture = put(src / "id0/two\nlines.jpg", 61).read_bytes()
    folder = os.fsencode(src) + b"/Jos\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(picture[:-2] + b"\xff\xfe\x00\x03x" + picture[-2:])
    store, _ = convert()
    assert store.identities == ["Jos\\udce9", "id0", "id1", "id2"]
    assert store.manifest["counts"]["rejected"] == 0
    assert store.sources[0] == "Jos\\udce9/\\udcff.jpg"
    assert "id0/two\\nlines.jpg" in store.sources


def test_names_are_compared_in_one_form():
    assert names.normal(f"\u3000{NFD}\xa0") == NFC
    assert names.identity("Ann\u3000Lee") == "Ann\u3000Lee"
    assert names.identity("a\u2028b\tc") == "a\\u2028b\\tc"
    assert names.path(f".\\{NFD} \\.//1.jpg") == f"{NFC}/1.jpg"
    assert [names.leftover(name).partition(":")[0] for name in (".x", "ICON\r", "@eaDIR", "ann", "x.")] == [
        *("hidden", "a tool's files", "a tool's files", "", ""),
    ]


def test_a_datasets_names_have_the_same_form():
    source = object.__new__(tfds_source.Source)
    source.identities = [NFD, "bob", NFC]
    assert list(source.records(["bob", NFC])) == [(1, "bob"), (0, NFC), (2, NFC)]


def test_people_are_sorted_by_name(tmp_path):
    for folder in (NFD, "Zoe", ".git", "Ann"):
        (tmp_path / folder).mkdir()
    assert list(picture_tree.list_people(tmp_path).folders.items()) == [
        ("Ann", ["Ann"]),
        (NFC, [NFD]),
        ("Zoe", ["Zoe"]),
    ]


def test_a_link_into_what_another_link_leads_to_hides_nothing_else(src, tmp_path):
    """The second link leads to two folders, and the first has already led to one of them."""
    for seed, file in enumerate(("a/x.jpg", "b/y.jpg")):
        put(tmp_path / "elsewhere" / file, 50 + seed)
    (src / "id0/link 1").symlink_to(tmp_path / "elsewhere/b", target_is_directory=True)
    (src / "id0/link 2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    tree = PictureTree(src, ["id0"])
    assert tree.files == ["id0/0.jpg", "id0/1.jpg", "id0/link 1/y.jpg", "id0/link 2/a/x.jpg"]
    assert [entry.file for entry in tree.left_out] == ["id0/link 2/b"]


def test_where_a_file_lies_that_is_nobodys(src, monkeypatch):
    put(src / "loose.jpg", 3)
    (src / "notes.txt").write_text("x")
    monkeypatch.chdir(src)
    for folder, named in ((src, "src"), (Path(), ".")):
        reasons = {entry.file: entry.reason for entry in picture_tree.list_people(folder).left_out}
        assert reasons["loose.jpg"].endswith(f": it lies directly in {named}")
        assert reasons["notes.txt"] == f"not a picture: it lies directly in {named}"


def test_a_link_may_lead_to_what_the_identitys_own_folder_hides(src):
    put(src / "id0/.hidden/9.jpg", 9)
    (src / "id0/link.jpg").symlink_to(src / "id0/.hidden/9.jpg")
    tree = PictureTree(src, ["id0"])
    assert tree.files == ["id0/0.jpg", "id0/1.jpg", "id0/link.jpg"]
