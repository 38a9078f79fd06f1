"""Questions put to one side after the other: answers, and how far each is from what the unpruned model says.

Every side is made to say what the unpruned model says. Where each of its best tokens is that anyway, this is its own
answer; where not, it is asked again and left to itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokcarve.exporters.device.playing import Asked
from tokcarve.exporters.evaluation.cast import Role
from tokcarve.exporters.evaluation.questions import Question
from tokcarve.exporters.evaluation.scores import Answer
from tokcarve.exporters.evaluation.speaking import Floats, Preparer, Speaker, divergence
from tokcarve.recipes.journal import LineJournal

__all__ = ["Interview", "Tell"]

Tell = Callable[[str, int, int], None]
"""Called with (which side answers, how many of its questions are done, how many there are)."""

_HELD = 256 * 2**20  # bytes of the unpruned model's logits that are not computed again


class Interview:
    """Questions, who makes them ready, and what is kept of the answers; `most` tokens are said to each."""

    def __init__(
        self,
        questions: Sequence[Question],
        preparer: Preparer,
        journal: LineJournal,
        most: int,
        tell: Tell | None = None,
    ) -> None:
        self.questions, self.preparer, self.journal, self.most, self.tell = questions, preparer, journal, most, tell
        self._ran: dict[str, str] = {}
        self._full: list[Answer] = []
        self._whole: Callable[[], Speaker] | None = None
        self._held: dict[int, Floats] = {}
        self._room = _HELD
        self._pixels: tuple[str, Any] | None = None

    def unpruned(self, role: Role) -> list[Answer]:
        """The answers of the unpruned model, which the other sides are compared with; it stays loaded."""
        self._whole = lru_cache(1)(role.runs[0])
        self._full = self._answers(role.name, 0, self._whole, self._plain)
        return self._full

    def others(self, role: Role) -> list[list[Answer]]:
        """The answers of another side, run by run."""
        return [self._answers(role.name, run, make, self._compared) for run, make in enumerate(role.runs)]

    def provider(self, role: Role) -> str:
        """Where the first run of a side ran."""
        kept = self.journal.get({"side": role.name})
        return self._ran[role.name] if kept is None else str(kept["provider"])

    def _answers(
        self,
        name: str,
        run: int,
        make: Callable[[], Speaker],
        put: Callable[[Speaker, Sequence[int]], list[Answer]],
    ) -> list[Answer]:
        total = len(self.questions)
        kept = {number: self.journal.get(_task(name, run, number)) for number in range(total)}
        found = {number: _read(one) for number, one in kept.items() if one is not None}
        missing = [number for number in range(total) if number not in found]
        if not missing:
            return list(found.values())
        speaker = make()
        if self.journal.get({"side": name}) is None and name not in self._ran:
            self._ran[name] = speaker.provider
            self.journal.put({"side": name}, {"provider": speaker.provider})
        for start in range(0, len(missing), speaker.batch):
            chunk = missing[start : start + speaker.batch]
            for number, answer in zip(chunk, put(speaker, chunk), strict=True):
                found[number] = answer
                self.journal.put(_task(name, run, number), _written(answer))
            if self.tell is not None:
                self.tell(name if not run else f"{name}, run {run + 1}", len(found), total)
        return [found[number] for number in range(total)]

    def _plain(self, speaker: Speaker, numbers: Sequence[int]) -> list[Answer]:
        spoken = speaker.free([self._asked(number) for number in numbers], self.most)
        for number, one in zip(numbers, spoken, strict=True):
            self._hold(number, one.logits)
        return [self._answer(one.tokens, True, [0.0] * len(one.tokens)) for one in spoken]

    def _compared(self, speaker: Speaker, numbers: Sequence[int]) -> list[Answer]:
        asked = [self._asked(number) for number in numbers]
        said = [self._full[number].tokens for number in numbers]
        logits = speaker.forced(asked, said)
        own = {place: tuple(int(token) for token in one.argmax(axis=1)) for place, one in enumerate(logits)}
        other = [place for place, tokens in own.items() if tokens != said[place]]
        if other:
            again = speaker.free([asked[place] for place in other], self.most)
            own |= {place: one.tokens for place, one in zip(other, again, strict=True)}
        made = []
        for place, (number, one) in enumerate(zip(numbers, logits, strict=True)):
            kl = divergence(self._logits(number, asked[place]), one)
            same = self._text(own[place]).lower() == self._full[number].text.lower()
            made.append(self._answer(own[place], same, kl))
        return made

    def _answer(self, tokens: Sequence[int], same: bool, kl: Sequence[float]) -> Answer:
        return Answer(tokens=tuple(tokens), text=self._text(tokens), same=same, kl=tuple(kl))

    def _text(self, tokens: Sequence[int]) -> str:
        return self.preparer.text(tokens)

    def _asked(self, number: int) -> Asked:
        """A question made ready; consecutive ones about a picture share its pixels."""
        question = self.questions[number]
        if self._pixels is None or self._pixels[0] != question.picture:
            self._pixels = question.picture, self.preparer.images([question.open()])
        before, after = self.preparer.words(question.text)
        return Asked(pixels=self._pixels[1], before=before, after=after)

    def _hold(self, number: int, logits: Floats) -> None:
        if logits.nbytes <= self._room:
            self._held[number] = logits.copy()  # what is given may be a view of a whole batch
            self._room -= logits.nbytes

    def _logits(self, number: int, asked: Asked) -> Floats:
        """What the unpruned model's distributions were, computed again where they were not held."""
        if number not in self._held:
            assert self._whole is not None
            found = self._whole().forced([asked], [self._full[number].tokens])[0]
            self._hold(number, found)
            return found
        return self._held[number]


def _task(side: str, run: int, question: int) -> dict[str, Any]:
    return {"side": side, "run": run, "question": question}


def _written(answer: Answer) -> dict[str, Any]:
    return {"tokens": list(answer.tokens), "text": answer.text, "same": answer.same, "kl": list(answer.kl)}


def _read(kept: Mapping[str, Any]) -> Answer:
    return Answer(tokens=tuple(kept["tokens"]), text=kept["text"], same=kept["same"], kl=tuple(kept["kl"]))
