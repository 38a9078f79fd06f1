"""The rule by which answers are compared, case by case, and that normalising twice changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcarve.exporters.evaluation.normalise import normalised, polarity


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("The Cat.", "cat"),
        ("a red  car\n", "red car"),
        ("Two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("1,5", "1 5"),
        ("3.5 m", "3.5 m"),
        (".5", "5"),
        ("-3", "-3"),
        ("black-and-white", "black and white"),
        ("don't", "dont"),
        ("yes, it is!", "yes it is"),
        ("A", "a"),
        ("(A)", "a"),
        ("", ""),
        ("?!", ""),
        ("anthem", "anthem"),
        ("someone", "someone"),
    ],
)
def test_cases(said: str, compared: str) -> None:
    assert normalised(said) == compared


@settings(max_examples=40)
@given(st.text(alphabet="a theonX019,.-'_ ?²٣İ–\0", max_size=12))
def test_once_is_enough(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once and once == once.strip() and "  " not in once


@pytest.mark.parametrize(
    ("said", "word"), [("Yes.", "yes"), ("no, there is not", "no"), ("nothing", ""), ("it is: yes", ""), ("", "")]
)
def test_polarity_is_the_first_word(said: str, word: str) -> None:
    assert polarity(said) == word
