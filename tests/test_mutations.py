"""Test that the list of seeded faults (tests/mutations.py, too slow for every run) matches the code and the tests."""

import re

import pytest

from tests import mutations


def test_names_are_unique():
    assert len({fault.name for fault in mutations.FAULTS}) == len(mutations.FAULTS)


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_the_list_fits_the_code(fault):
    mutations.broken(fault, (mutations.ROOT / fault.file).read_text())  # raises ValueError if it does not
    for test in fault.tests:
        file, name = re.sub(r"\[.*", "", test).split("::")
        assert f"\ndef {name}(" in (mutations.ROOT / file).read_text(), f"{fault.name}: {test} is gone"


OUTPUTS = {
    "caught": (1, "FAILED tests/test_a.py::test_b[x y] - assert 1 == 2\n", (True, "tests/test_a.py::test_b[x y]")),
    "survived": (0, "1 passed in 1s\n", (False, "SURVIVED")),
    "skipped": (0, "SKIPPED [1] tests/test_a.py:3: no torch\n", (False, "skipped here: tests/test_a.py:3: no torch")),
    "collection": (2, "ERROR tests/test_a.py - SyntaxError\nstopping after 1 failures\n", (False, "ended with 2")),
    "nothing ran": (5, "no tests ran in 0.1s\n", (False, "ended with 5: no tests ran")),
    "fixture": (1, "ERROR tests/test_a.py::test_b - assert 1\n", (False, "ended with 1")),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_only_a_failing_test_is_a_catch(case):
    code, output, (caught, text) = OUTPUTS[case]
    got = mutations.judge(code, output)
    assert got[0] == caught
    assert text in got[1]
