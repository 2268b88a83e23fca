"""Test rule files, and `python -m fvjax.data.rules check` on labels with the counts that CelebA's have."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvjax import attribute_rules
from fvjax.data import rules, stores
from fvjax.data.attributes import Attributes
from fvjax.data.readers import celeba, maad
from tests.test_images import file_bytes, smooth_face

GOLDEN = json.loads(Path("tests/golden/faceinsight/faceinsight_rules.json").read_text())
ROWS = 20_000


class Labels:
    """Labels of 20,000 pictures that are filled up attribute by attribute."""

    def __init__(self):
        self.cells = np.zeros((ROWS, len(celeba.NAMES)), bool)

    def column(self, name):
        return self.cells[:, celeba.NAMES.index(name)]

    def put(self, *names, count, among=(), without=()):
        """Give these attributes to `count` pictures with `among`, and none of `names` or `without`; return which."""
        free = np.ones(ROWS, bool)
        for name in among:
            free &= self.column(name)
        for name in (*names, *without):
            free &= ~self.column(name)
        chosen = np.flatnonzero(free)[:count]
        assert len(chosen) == count, names
        for name in names:
            self.column(name)[chosen] = True
        return chosen

    def fill(self, name, total, without=()):
        """Give an attribute to as many pictures as are missing to `total`, all without these others."""
        self.put(name, count=total - int(self.column(name).sum()), without=without)


HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
BEARD = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")
SHAPE = ("Bald", "Wavy_Hair", "Straight_Hair", "Bangs", "Receding_Hairline")


def celeba_labels():
    """Return labels, bool [20000, 40], that break every rule as often as those of CelebA's first pictures do."""
    x, every = Labels(), (*HAIR, *BEARD, *SHAPE, "No_Beard")
    # Pictures that break a rule. Hair colours in twos, and once in threes.
    x.put(*HAIR[:3], count=1)
    pairs = {(0, 1): 17, (0, 2): 88, (0, 3): 20, (1, 2): 131, (1, 3): 20, (2, 3): 21}
    for (i, j), count in pairs.items():
        x.put(HAIR[i], HAIR[j], count=count, without=HAIR)
    x.put("Pale_Skin", "Rosy_Cheeks", count=4, among=HAIR[:2])
    x.put("Pale_Skin", "Rosy_Cheeks", count=5, without=every)
    x.put("Young", count=14, among=("Gray_Hair",))
    x.put("Bald", "Wavy_Hair", count=1, without=(*every, "Pale_Skin"))
    x.put("Bald", "Straight_Hair", count=9, without=(*every, "Pale_Skin"))
    x.put("Bald", "Brown_Hair", count=7, without=(*every, "Pale_Skin"))
    x.put("Bald", "Wearing_Hat", count=3, without=(*every, "Pale_Skin"))
    x.put("Wavy_Hair", "Straight_Hair", count=116, without=(*every, "Pale_Skin"))
    x.put("Bangs", "Receding_Hairline", count=1, without=(*every, "Pale_Skin"))
    for names, count in ((BEARD[1:3], 4), (BEARD[1:2], 16), (BEARD[2:3], 17), (BEARD[3:4], 10)):
        x.put("No_Beard", *names, count=count, without=(*every, "Pale_Skin"))
    x.put("Gray_Hair", "Young", count=18, without=(*every, "Pale_Skin"))
    x.put("Heavy_Makeup", "Wearing_Lipstick", "Goatee", count=2, without=(*every, "Pale_Skin", "Young"))
    x.put("Wearing_Lipstick", "Goatee", count=1, without=(*every, "Pale_Skin", "Young", "Wearing_Lipstick"))
    x.put("Rosy_Cheeks", "Mustache", count=16, without=(*every, "Pale_Skin", "Young", "Wearing_Lipstick"))
    # The others, so that no further rule is broken.
    x.fill("Bald", 464, without=(*every, "Wearing_Hat", "Young"))
    colours = dict(zip(HAIR, (4853, 2977, 4064, 838)))
    for name, total in colours.items():
        x.fill(name, total, without=(*HAIR, "Bald", *(("Young",) if name == "Gray_Hair" else ())))
    x.fill("Young", 15_608, without=("Gray_Hair",))
    x.fill("Bangs", 3029, without=("Bald", "Receding_Hairline"))
    x.fill("Receding_Hairline", 1560, without=("Bangs", "Bald"))
    x.fill("Wavy_Hair", 6323, without=("Bald", "Straight_Hair"))
    x.fill("Straight_Hair", 4247, without=("Bald", "Wavy_Hair"))
    x.fill("Wearing_Hat", 995, without=("Bald",))
    x.fill("No_Beard", 16_642, without=BEARD)
    x.put("5_o_Clock_Shadow", count=624, among=("No_Beard",), without=("Wearing_Lipstick", "Rosy_Cheeks"))
    makeup = ("Wearing_Lipstick", "Rosy_Cheeks", "Heavy_Makeup")
    x.fill("5_o_Clock_Shadow", 2245, without=("No_Beard", *makeup))
    x.fill("Goatee", 1250, without=("No_Beard", *BEARD, *makeup))
    x.put("Sideburns", count=55, without=("No_Beard", *BEARD, *makeup))
    x.put("Sideburns", count=1103, among=("5_o_Clock_Shadow",), without=("No_Beard",))
    x.put("Mustache", count=750, among=("Goatee",), without=("No_Beard", "Wearing_Lipstick"))
    x.fill("Pale_Skin", 863, without=("Rosy_Cheeks",))
    x.fill("Rosy_Cheeks", 1267, without=("Pale_Skin", *BEARD))
    x.put("Wearing_Lipstick", "Heavy_Makeup", count=7698 - 161 - 2, without=(*BEARD, "Wearing_Lipstick"))
    x.put("Heavy_Makeup", count=161, without=(*BEARD, "Wearing_Lipstick"))
    x.fill("Wearing_Lipstick", 9421, without=(*BEARD, "Heavy_Makeup"))
    # Everybody with a beard, a bald head or a necktie is a man, but for one, one, one and four.
    x.put("Wearing_Necktie", count=1477, among=("No_Beard",), without=("Wearing_Lipstick", *BEARD, "Bald"))
    for name in (*BEARD, "Bald", "Wearing_Necktie"):
        x.column("Male")[x.column(name)] = True
    for name in ("Goatee", "5_o_Clock_Shadow", "Bald"):
        others = [other for other in (*BEARD, "Bald") if other != name]
        only = x.column(name) & ~x.cells[:, [celeba.NAMES.index(other) for other in others]].any(1)
        x.column("Male")[np.flatnonzero(only)[0]] = False
    x.put("Wearing_Necktie", count=4, without=("Male", *BEARD))
    return x.cells


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Write these labels in the form of CelebA's file, 2.6 MB, whose first line claims all of CelebA's pictures."""
    path = tmp_path_factory.mktemp("celeba") / "list_attr_celeba.txt"
    values = np.where(celeba_labels(), " 1", "-1")
    rows = [f"{i:06d}.jpg {' '.join(row)}" for i, row in enumerate(values, 1)]
    path.write_text("\n".join(["202599", " ".join(celeba.NAMES) + " ", *rows]) + "\n")
    return path


def run(capsys, *arguments):
    code = rules.main(["check", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_celebas_counts(file):
    names, labels = rules.read_labels(file)
    groups = GOLDEN["celeba40"]
    every = groups["exclusions"] + groups["groups"] + groups["implications"]
    table = attribute_rules.compile_rules(every, names)
    for found, entry in zip(rules.check(labels, table), every):
        expected = entry["measured"]
        assert (found.decided, found.violations) == (expected.get("positives", ROWS), expected["violations"]), entry
    exclusions = groups["exclusions"]
    for chosen, broken in ((exclusions, 524), (exclusions[:18], 487), (groups["groups"], 436)):
        assert rules.broken_rows(labels, attribute_rules.compile_rules(chosen, names)) == broken


def test_the_command_prints_the_specifications_table(file, capsys):
    code, out, err = run(capsys, f"--labels={file}", "--sets=anatomical,regularities,groups")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:6] for line in out.splitlines() if line}
    assert lines["x6"] == ["6323", "117", "1.85%", "0.585%", "7.29%"]
    assert lines["x12"] == ["16642", "47", "0.28%", "0.235%", "12.65%"]
    assert lines["x19"] == ["838", "32", "3.82%", "0.160%", "3.27%"]
    assert lines["c_beard"][:4] == ["20000", "436", "2.18%", "2.180%"]
    assert "anatomical: 18 rules, 487 pictures (2.435%)" in out
    assert "no rule to drop: none is broken by more than 10%" in out
    assert "most point at No_Beard" in out


def test_rules_of_common_sense_that_the_labels_contradict(file, tmp_path, capsys):
    own = tmp_path / "own.toml"
    own.write_text(
        f"attributes = {json.dumps(celeba.NAMES)}\n"
        '[[rules]]\nname = "shadow"\nantecedent = "5_o_Clock_Shadow"\nconsequents = ["No_Beard"]\nkind = "excludes"\n'
        '[[rules]]\nname = "neck"\nantecedent = "Blurry"\nconsequents = ["Big_Lips"]\nkind = "excludes"\n'
    )
    code, out, _ = run(capsys, f"--labels={file}", f"--rules={own}")
    assert code == 0
    assert "drop shadow: 27.80% of the pictures concerned break it (5_o_Clock_Shadow -> not No_Beard)" in out
    assert "not judged, as no picture is concerned: neck" in out
    code, out, _ = run(capsys, f"--labels={file}", f"--rules={own}", "--max-share=0.3")
    assert "no rule to drop" in out


def test_edges(tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,a,b,c\n" + "1.jpg,1,1,-1\n2.jpg,1,-1,0\n3.jpg,1,1,1\n4.jpg,-1,-1,-1\n")
    own = tmp_path / "own.toml"
    own.write_text('attributes = ["a", "b", "c"]\nrules = []\n')
    _, out, _ = run(capsys, f"--labels={labels}", f"--rules={own}", "--tau=0.6", "--edges")
    assert "  a -> b 0.67\n  b -> a 1.00\n  c -> a 1.00, b 1.00" in out
    assert "8.3% of the labels are missing" in out
    _, out, _ = run(capsys, f"--labels={labels}", f"--rules={own}", "--tau=0.7", "--edges")
    assert "  a -> nothing" in out
    assert "without any edge: a" in out


def test_unlabelled_cells_decide_nothing():
    table = attribute_rules.compile_rules(
        [{"name": "r", "antecedent": "a", "consequents": ["b", "c"], "kind": "excludes"}], "abc"
    )
    labels = np.array([[1, 0, -1], [1, 1, 0], [1, -1, -1], [0, 1, -1]], np.int8)
    (found,) = rules.check(labels, table)
    assert (found.decided, found.violations, found.rows) == (2, 1, 2)


def test_a_store(tmp_path, capsys):
    columns = Attributes(maad.NAMES, dataset="maad")
    jpeg = file_bytes(Image.fromarray(smooth_face(0, 112)), "JPEG")
    with stores.Writer(tmp_path / "s", split="val", sources=["x"], features={"attributes": columns.feature}) as writer:
        writer.info["attributes"] = columns.to_json()
        writer.add(jpeg, "bob", "1.jpg", attributes=columns.row(["Bald", "Bangs", "Young", "No_Eyewear", "No_Beard"]))
    code, out, err = run(capsys, f"--store={tmp_path / 's'}", "--sets=maad,groups")
    assert (code, err) == (0, "")
    assert "1 pictures (100.00%) break at least one rule" in out
    assert "drop m1: 100.00%" in out


def test_classes_of_a_store(tmp_path, capsys):
    """Without --rules, every picture of a store of classes must have exactly one of each group."""
    columns = Attributes(("young", "old"), {"age": ("young", "old")})
    jpeg = file_bytes(Image.fromarray(smooth_face(0, 112)), "JPEG")
    with stores.Writer(
        tmp_path / "s", split="train", sources=["x"], features={"attributes": columns.feature}
    ) as writer:
        writer.info["attributes"] = columns.to_json()
        for i, positive in enumerate((["young"], ["young", "old"], [])):
            writer.add(jpeg, "bob", f"{i}.jpg", attributes=columns.row(positive))
    code, out, err = run(capsys, f"--store={tmp_path / 's'}")
    assert (code, err) == (0, "")
    assert "2 pictures (66.67%) break at least one rule" in out
    assert "drop age: 33.33%" in out


def test_labels_are_judged_in_parts(monkeypatch):
    table = attribute_rules.compile_rules(
        [{"name": "r", "antecedent": "a", "consequents": ["b"], "kind": "excludes"}], "ab"
    )
    labels = np.array([[1, 1], [1, -1], [1, 1], [-1, 1], [0, 1]], np.int8)
    whole = rules.check(labels, table), rules.broken_rows(labels, table)
    monkeypatch.setattr(rules, "_ROWS", 2)
    assert (rules.check(labels, table), rules.broken_rows(labels, table)) == whole
    assert whole[1] == 2


def test_shipped_files_are_the_specifications():
    for name, key in (("celeba40", "celeba40"), ("maad47", "maad47")):
        part = GOLDEN[key]
        expected = attribute_rules.parse(part["exclusions"] + part["groups"] + part.get("implications", []))
        found = rules.read(name)
        assert (found.attributes, found.rules) == (tuple(part["attributes"]), expected)
    assert len(rules.load("celeba40", ["anatomical"])) == 18
    assert len(rules.load("maad47", ["maad", "groups"])) == 25
    assert rules.choose(celeba.NAMES) == "celeba40"


REFUSED = [
    ("rules = [", "not TOML"),
    ('attributes = ["a"]', "expected exactly a list attributes and tables"),
    ("attributes = []\nrules = []", "must be a list of names"),
    ('attributes = ["a", "a"]\nrules = []', "names repeat"),
    (
        'attributes = ["a", "b"]\n[[rules]]\nname = "r"\nantecedent = "a"\nconsequents = ["z"]\nkind = "excludes"',
        "rule 'r': unknown attribute 'z'",
    ),
    (
        'attributes = ["a", "b"]\n[[rules]]\nname = "r"\nconsequents = ["a"]\nkind = "implies"',
        "rule 'r': a rule of the kind 'implies' needs",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_rule_files(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        rules.read(str(tmp_path / "own.toml"))
    assert "own.toml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels=missing.txt",), "missing.txt: no such file"),
        (("--labels=l.csv",), "no rules come with fvjax for these 2 attributes"),
        (("--labels=l.csv", "--rules=celeba40"), "celeba40: rule 'x1': unknown attribute 'Bald'"),
        (("--labels=l.csv", "--rules=celeba41"), "celeba41: no such file of rules; choose celeba40 or maad47"),
        (("--labels=l.csv", "--rules=maad47", "--sets=mad"), "maad47: no set of rules 'mad'"),
        (("--labels=l.csv", "--tau=0"), "--tau=0.0"),
        (("--labels=l.csv", "--max-share=1"), "--max-share=1.0"),
        (("--labels=bad.csv", "--rules=celeba40"), "line 2: the value '7'"),
        (("--labels=same.csv", "--rules=celeba40"), "each with another name"),
        (("--labels=empty.csv", "--rules=celeba40"), "no picture is listed"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "l": "file,a,b\n1.jpg,1,-1\n",
        "bad": "f,a\nx,7\n",
        "same": "f,a,a\nx,1,1\n",
        "empty": "f,a\n",
    }.items():
        Path(f"{name}.csv").write_text(text)
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
