"""Answers made comparable, in the manner of the evaluation of VQA (arXiv:1505.00468); see `normalised` for the rule.

Source      the challenge's rule as it is described, written from that description.
Differs     an article that is all there is stays (the answer "A" of a choice), and so does the minus of a number.
"""

import re

__all__ = ["normalised", "polarity"]

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))


def normalised(text: str) -> str:
    """`text` as answers are compared, in this order:

    lower case; apostrophes vanish ("don't" is "dont"); a comma before thousands vanishes ("1,000"), a point between
    digits and a minus before a number stay; all other punctuation becomes a space; "zero" to "ten" and "none" become
    digits; the articles a, an and the vanish unless nothing else is left; white space becomes one space.
    """
    text = re.sub(r"['’`]", "", text.lower())
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r"[^\w\s.-]|_", " ", text)
    text = re.sub(r"(?<=\S)-|-(?!\d)", " ", text)
    words = [_WORDS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def polarity(text: str) -> str:
    """ "yes" or "no" where the normalised answer begins with it, else ""."""
    first = normalised(text).partition(" ")[0]
    return first if first in ("yes", "no") else ""
