"""Test the procedural faces: deterministic, told apart by shape alone, hard for pixels and colours, quick to draw."""

import hashlib
import json
import time

import numpy as np
import pytest

from fvjax.data import cartoon, stores, synthetic
from fvjax.evals import baselines
from fvjax.evals.folds import verification

PICTURE = [[118.4, 95.6, 54.3], [111.4, 89.4, 50.2], [83.1, 125.4, 68.6]]  # RGB of three blocks of 14x14 pixels


def test_parameters_are_pinned():
    """Published results refer to these people. The values are rounded, because libm may differ in the last bit."""
    attributes = synthetic.shot_attributes(3, 5, seed=7)
    values = {name: np.round(np.asarray(v, float), 6).tolist() for name, v in attributes.items()}
    values |= {name: round(v, 6) for name, v in synthetic.identity_shape(3, seed=7).items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "5b469c129236a788"


def test_picture_is_pinned():
    """Means over 14x14 blocks tolerate a maths library's last bit, but not another drawing."""
    picture = synthetic.face(3, 5, seed=7).reshape(8, 14, 8, 14, 3).mean((1, 3))
    np.testing.assert_allclose(picture[[1, 4, 6], [4, 3, 4]], PICTURE, atol=0.5)


def test_same_arguments_same_face_other_arguments_another():
    base = synthetic.face(1, 2, 3)
    assert base.shape == (112, 112, 3)
    assert base.dtype == np.uint8
    np.testing.assert_array_equal(base, synthetic.face(1, 2, 3))
    for other in [(2, 1, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 2, 3, 2.0)]:
        assert np.abs(base.astype(int) - synthetic.face(*other)).mean() > 2, other


def test_identity_is_shape_and_only_shape():
    """Two people in the same shot differ only at the face. The background and its colours belong to the shot."""
    attributes = synthetic.shot_attributes(0, 0, 0, difficulty=0)
    assert not set(attributes) & set(synthetic.SHAPE)
    first, second = (cartoon.render(synthetic.identity_shape(i, 0), attributes).astype(int) for i in (1, 2))
    differs = np.abs(first - second).max(-1) > 10
    assert 0.1 < differs.mean() < 0.8
    assert not differs[:6, :6].any()  # the backdrop belongs to the shot

    def palette(picture):  # a property of the shot: the same large areas have the same colours for any person
        return set(map(tuple, np.unique(picture[2::8, 2::8].reshape(-1, 3) // 32, axis=0)))

    shared = palette(first) & palette(second)
    assert len(shared) >= 0.5 * min(len(palette(first)), len(palette(second)))


def test_shots_share_no_stream_with_identities():
    """Nothing about a shot predicts the identity: attribute means differ between people only by chance."""
    _, labels, attributes = synthetic.faces(range(40), 10, seed=0)
    for name, values in attributes.items():
        columns = values.reshape(len(labels), -1).astype(float)
        within = columns.reshape(40, 10, -1)
        between = within.mean(1).var(0) / (columns.var(0) / 10)
        assert (between < 2.2).all(), name  # 1 by chance, 10 if it depended on the person


def test_difficulty_scales_pose_and_occlusion():
    def drawn(difficulty):
        shots = [synthetic.shot_attributes(i, 0, 0, difficulty) for i in range(300)]
        yaw = max(abs(shot["yaw"]) for shot in shots)
        return yaw, np.mean([shot["glasses"] or shot["scarf"] or shot["bar"] for shot in shots])

    assert drawn(0) == (0, 0)
    (easy_yaw, easy_hidden), (hard_yaw, hard_hidden) = drawn(1), drawn(3)
    assert hard_yaw == pytest.approx(3 * easy_yaw)
    assert hard_hidden > 2 * easy_hidden > 0.2
    with pytest.raises(ValueError, match=r"difficulty is 3\.5, expected 0"):
        synthetic.face(0, 0, 0, 3.5)


def test_faces_returns_what_face_draws():
    pictures, labels, attributes = synthetic.faces(range(4, 7), 2, seed=1)
    assert labels.tolist() == [4, 4, 5, 5, 6, 6]
    np.testing.assert_array_equal(pictures[3], synthetic.face(5, 1, 1))
    assert attributes["yaw"][3] == synthetic.shot_attributes(5, 1, 1)["yaw"]
    assert attributes["skin"].shape == (6, 3)


def test_write_makes_a_store_with_a_protocol(tmp_path):
    written = synthetic.write(tmp_path / "test", range(100, 120), 4, 0, split="test", pairs=60)
    assert len(written) == 80
    assert written.identities[:2] == ["synthetic000100", "synthetic000101"]
    pairs = stores.read_pairs(tmp_path / "test", "synthetic")
    assert pairs.fold_sizes == [6] * 10
    assert pairs.same.sum() == 30
    assert len({tuple(sorted(p)) for p in zip(pairs.a.tolist(), pairs.b.tolist())}) == 60
    folds_of = {}
    for people in (pairs.identity_a, pairs.identity_b):
        for identity, fold in zip(people.tolist(), pairs.fold.tolist()):
            assert folds_of.setdefault(identity, fold) == fold  # no identity in two folds
    again = synthetic.write(tmp_path / "again", range(100, 120), 4, 0, split="test", pairs=60)
    assert again.data_hash == written.data_hash
    difference = written.image(5).astype(int) - synthetic.face(101, 1, 0)
    assert np.abs(difference).mean() < 6  # JPEG


@pytest.mark.parametrize(
    ("people", "pairs", "message"), [(20, 55, "multiple of 20"), (9, 20, "1 identities"), (20, 800, "add identities")]
)
def test_impossible_protocols_are_refused(people, pairs, message):
    with pytest.raises(ValueError, match=message):
        synthetic.verification_pairs(np.repeat(np.arange(people), 3), pairs, 0)


def test_another_seed_chooses_other_pairs():
    labels = np.repeat(np.arange(40), 4)
    first, again, other = (synthetic.verification_pairs(labels, 200, seed) for seed in (0, 0, 1))
    chosen, repeated, different = (set(zip(p.a.tolist(), p.b.tolist())) for p in (first, again, other))
    assert chosen == repeated
    assert len(chosen & different) < 100  # by chance about 40: nearly half of all genuine pairs are chosen


@pytest.fixture(scope="module")
def quickstart_test_set():
    pictures, labels, _ = synthetic.faces(range(100_000, 100_120), 6, seed=0, difficulty=2.0)
    return pictures, synthetic.verification_pairs(labels, 1000, seed=0)


def marginal_histogram(pictures):
    """Return float32 [N, 24]: eight bins each for red, green and blue."""
    levels = pictures.reshape(len(pictures), -1, 3) // 32
    return np.stack([(levels == k).mean(1) for k in range(8)], 1).reshape(len(pictures), -1).astype(np.float32)


def grey(pictures):
    return baselines.pixel(pictures.mean(-1))


@pytest.mark.parametrize("embed", [baselines.pixel, grey, baselines.histogram, marginal_histogram])
def test_pixels_and_colours_do_not_solve_it(quickstart_test_set, embed):
    pictures, pairs = quickstart_test_set
    vectors = embed(pictures)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = (vectors[pairs.a] * vectors[pairs.b]).sum(1)
    metrics = verification(scores, pairs.same, pairs.fold_sizes, bootstrap=0)
    assert metrics["accuracy@best_threshold"]["mean"] <= 0.60


def test_drawing_is_quick():
    """The quickstart draws 3,000 faces, at about 3 ms each on one core. The limit leaves room for a loaded machine."""
    synthetic.face(0, 0, 0)
    start = time.process_time()
    for i in range(20):
        synthetic.face(i, 1, 0)
    assert (time.process_time() - start) / 20 < 0.025


def test_several_processes_draw_the_same_store(tmp_path):
    settings = {"split": "train", "difficulty": 2.0, "pairs": 20, "features": ("yaw",)}
    one = synthetic.write(tmp_path / "one", range(20, 40), 2, 5, **settings)
    two = synthetic.write(tmp_path / "two", range(20, 40), 2, 5, workers=2, **settings)
    assert (two.data_hash, two.sources) == (one.data_hash, one.sources)
