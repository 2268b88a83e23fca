"""Test the reading of free descriptions into attributes: negation, longest phrases, classes, conflicts."""

import time

import numpy as np
import pytest

from fvjax.attribute_rules import compile_rules
from fvjax.data import rules
from fvjax.data.readers import celeba, expressions, fairface, maad, utkface
from fvjax.evals.attribute_parser import Parser
from fvjax.evals.attributes import violations

CELEBA = Parser(celeba.NAMES)
MAAD = Parser(maad.NAMES)
FACES = Parser(
    (*fairface.AGES, *fairface.GENDERS, *fairface.RACES),
    {"age": fairface.AGES, "gender": fairface.GENDERS, "race": fairface.RACES},
)
EMOTIONS = Parser(expressions.EXPRESSIONS, {"expression": expressions.EXPRESSIONS})


def positive(parser, text):
    return {parser.names[i] for i in np.flatnonzero(parser(text).positive)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bald man with a goatee.", {"Bald", "Goatee", "Male"}),
        ("Her long, wavy black hair frames an oval face.", {"Wavy_Hair", "Black_Hair", "Oval_Face"}),
        ("Her hair is long, straight and blonde.", {"Straight_Hair", "Blond_Hair"}),
        ("She has brown hair and a black hat.", {"Brown_Hair", "Wearing_Hat"}),
        ("He has no beard, mustache or glasses.", {"Male", "No_Beard"}),
        ("He has no beard, and he wears glasses.", {"Male", "No_Beard", "Eyeglasses"}),
        ("He doesn't have a beard.", {"Male", "No_Beard"}),
        ("The woman is not smiling; she wears earrings.", {"Wearing_Earrings"}),
        ("Without glasses but with a necklace.", {"Wearing_Necklace"}),
        ("Not only a mustache but also sideburns.", {"Mustache", "Sideburns"}),
        ("Her hair is not black.", set()),
        ("A five o'clock shadow covers the chin.", {"5_o_Clock_Shadow"}),
        ("A big nose and nothing notable.", {"Big_Nose"}),  # "nose", "nothing" and "notable" are no "no" and "not"
        ("The person ties a hatch.", set()),  # neither "tie" nor "hat"
        ("He is 25 years old.", {"Male", "Young"}),
        ("A 63-year-old man, old and grey-haired.", {"Male", "Gray_Hair"}),
        ("", set()),
    ],
)
def test_celebas_attributes(text, expected):
    assert positive(CELEBA, text) == expected


def test_maad_has_no_eyewear():
    assert "No_Eyewear" in positive(MAAD, "A senior without glasses.")
    assert positive(MAAD, "A senior woman with glasses.") >= {"Senior", "Eyeglasses"}
    assert "No_Eyewear" not in positive(MAAD, "A senior woman with glasses.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An East Asian man of about 34 years, 34 years old.", {"East Asian", "Male", "30-39"}),
        ("A woman in her twenties, or a girl. Another man.", {"Female", "20-29"}),  # two words for a woman
        ("A black woman, aged 71.", {"Black", "Female", "more than 70"}),
        ("Someone.", set()),
    ],
)
def test_one_class_of_each_question(text, expected):
    assert positive(FACES, text) == expected


def test_expressions():
    assert positive(EMOTIONS, "He looks angry rather than sad, really angry.") == {"Anger"}
    assert positive(EMOTIONS, "A smiling, happy face.") == {"Happiness"}
    assert positive(EMOTIONS, "Not happy.") == set()


def test_the_papers_conflict():
    """ "No beard" and "goatee" in one description: both positive, which breaks the rule No_Beard -> not Goatee."""
    parsed = CELEBA("The man has no beard. His goatee is neatly trimmed.")
    assert parsed.conflicts == ()
    table = compile_rules(rules.load("celeba40", ["anatomical"]), celeba.NAMES)
    found = violations(parsed.positive[None].astype(float), table)
    assert {name for name, share in found["by_rule"].items() if share} == {"x12", "x13"}


def test_an_attribute_that_is_affirmed_and_denied():
    parsed = CELEBA("He is smiling. He is not smiling.")
    assert parsed.conflicts == ("Smiling",)
    assert parsed.positive[celeba.NAMES.index("Smiling")]
    assert violations([[0.0]], compile_rules([], ["a"]), conflicts=[True])["rate"] == 1.0
    assert CELEBA("He is not smiling. No smile at all.").conflicts == ()


def test_what_is_not_mentioned():
    parsed = CELEBA("She is not smiling.")
    mentioned = {celeba.NAMES[i] for i in np.flatnonzero(parsed.mentioned)}
    assert mentioned == {"Smiling", "Male"}


def test_every_class_has_phrases():
    Parser(utkface.ATTRIBUTES.names, utkface.ATTRIBUTES.groups)
    with pytest.raises(ValueError, match="attribute 'Freckles' has no phrases"):
        Parser(["Freckles"])


def test_long_and_strange_texts_are_read_quickly():
    start = time.process_time()
    CELEBA("hair is very very " * 5000)
    CELEBA("\x00\ufffd no no no, or or" * 2000)
    assert time.process_time() - start < 10
