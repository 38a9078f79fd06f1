"""`evaluate`: what an artifact does to answers, with the unpruned model and controls always beside it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tokcarve.exporters.device.face import EXPORT, RECORD
from tokcarve.exporters.device.route import Wish
from tokcarve.exporters.evaluation.answering import Interview, Tell
from tokcarve.exporters.evaluation.cast import Cast, Role, cast_of
from tokcarve.exporters.evaluation.files import check_place, journal_of, write_evaluation
from tokcarve.exporters.evaluation.gate import Gate, check_floor, gate_of
from tokcarve.exporters.evaluation.opened import Opened, open_runtime
from tokcarve.exporters.evaluation.questions import Question, QuestionSet, open_questions, usable
from tokcarve.exporters.evaluation.record import Side, evaluation_record
from tokcarve.exporters.evaluation.scores import Answer, Floats, measures, soft
from tokcarve.exporters.evaluation.speaking import Preparer
from tokcarve.passes.errors import ArtifactError
from tokcarve.passes.inputs.prompt import PromptError
from tokcarve.recipes.artifact import Artifact, read_artifact
from tokcarve.recipes.journal import LineJournal, differences, read_journal

__all__ = ["MAX_NEW", "Evaluation", "evaluate"]

_SPOKEN = {"": ("tokcarve", "pillow", "tokenizers"), "ort": ("onnxruntime",), "torch": ("torch", "transformers")}
"""What answers depend on, in every runtime and in each."""
MAX_NEW = 16
"""Most tokens of an answer, unless told: answers that are scored are a word or a few."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it: `record()` is the JSON of `tokcarve eval`; answers by side, run by run, stand beside it."""

    fields: Mapping[str, Any]
    questions: Sequence[Question]
    answers: Mapping[str, Sequence[Sequence[Answer]]] = field(repr=False)

    def record(self) -> dict[str, Any]:
        """All of it as JSON; the keys are those of docs/json.md."""
        return dict(self.fields)

    def lines(self) -> list[dict[str, Any]]:
        """A line per question: what was asked, what is right, and the text that every side said."""
        said = {name: runs[0] for name, runs in self.answers.items()}
        return [
            {
                "id": one.id,
                "question": one.text,
                "answers": list(one.answers),
                "family": one.family,
                "said": {name: run[number].text for name, run in said.items()},
                "score": {name: soft(run[number].text, one.answers) for name, run in said.items()},
            }
            for number, one in enumerate(self.questions)
        ]


def evaluate(
    artifact: Artifact | Path | str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    runtime: str = "ort",
    tokens: int | None = None,
    mean_tokens: int | None = None,
    controls: Sequence[Path] | None = (),
    max_new: int | None = None,
    floor: float | None = None,
    gate: bool = True,
    threads: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Scores of the unpruned model, of the artifact and of controls on the same questions, with paired intervals.

    data: a JSONL file, or None for the bundled scenes; runtime: ort or torch; tokens: of a budget set, which, and its
    router's choice where none is named; mean_tokens: another mean of that choice than was calibrated; controls:
    exported artifacts, () for those carved in torch, None for none; floor, gate: see `gate_of`; out: the directory that
    the files go to, with a journal beside it while the work lasts, or None. Raises EvaluationError where the unpruned
    model does not clear the gate, SampleError for bad data, and what opening the artifact raises; then no evaluation is
    written.
    """
    found = artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact))
    check_floor(floor)
    if out is not None:
        check_place(out)
    wish = Wish(tokens=tokens, mean_tokens=mean_tokens).checked(found.manifest)
    opened = open_runtime(found, runtime, controls=controls, threads=threads)
    most = _allowed(max_new, opened)
    preparer = Preparer(found.processor, found.manifest.geometry.image_token_id, opened.max_text)
    asked = usable(open_questions(data, limit), lambda question: _refused(preparer, question))
    cast = cast_of(opened, wish, _shares(opened, wish, preparer, asked, tell))
    journal, begun = _journal(out, {**_facts(opened, cast, wish), "questions": asked.sha256, "most tokens": most})
    interview = Interview(asked.questions, preparer, journal, most, tell)
    opens = partial(gate_of, asked, weights=found.manifest.model.weights, floor=floor, ignored=not gate, seed=seed)
    with _kept(journal):
        passed, answers = _answered(interview, cast, opens)
    sides = [_side(interview, role, asked, answers[role.name]) for role in cast.roles]
    about = {**_about(opened), "runtime": runtime, "max_new": most, "seed": seed}
    fields = evaluation_record(about, asked, passed, sides, (*_assumed(found), *begun, *cast.notes))
    made = Evaluation(fields=fields, questions=asked.questions, answers=answers)
    if out is not None:
        write_evaluation(out, made.record(), made.lines())
        journal.close(done=True)
    return made


def _shares(
    opened: Opened, wish: Wish, preparer: Preparer, asked: QuestionSet, tell: Tell | None
) -> dict[int, float] | None:
    """The share of the questions that each budget of a routed set answers; None where nothing is routed."""
    if wish.named(opened.artifact.manifest) is not None:
        return None
    choose, chosen = opened.router(wish.mean_tokens), dict[str, int]()
    for number, question in enumerate(asked.questions, start=1):
        if question.picture not in chosen:
            chosen[question.picture] = choose(preparer.images([question.open()])).tokens
        if tell is not None:
            tell("router", number, len(asked.questions))
    tally = Counter(chosen[question.picture] for question in asked.questions)
    return {tokens: tally[tokens] / len(asked.questions) for tokens in opened.artifact.manifest.counts}


@contextmanager
def _kept(journal: LineJournal) -> Iterator[None]:
    """Work whose answers are kept, whatever ends it; an interruption says so."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "what was answered so far is kept, the same command goes on" if journal.path is not None else ""
        raise KeyboardInterrupt(kept) from None
    finally:
        journal.close(done=False)


def _side(interview: Interview, role: Role, asked: QuestionSet, runs: Sequence[Sequence[Answer]]) -> Side:
    return Side(role=role, provider=interview.provider(role), measures=measures(asked.questions, asked.groups, runs))


def _answered(
    interview: Interview, cast: Cast, gate: Callable[[Floats], Gate]
) -> tuple[Gate, dict[str, list[list[Answer]]]]:
    """Every side's answers, and the gate that the unpruned model's had to clear before any other was asked."""
    whole, *others = cast.roles
    full = interview.unpruned(whole)
    pairs = zip(full, interview.questions, strict=True)
    opened = gate(np.array([soft(answer.text, question.answers) for answer, question in pairs]))
    opened.insist()
    return opened, {whole.name: [full], **{role.name: interview.others(role) for role in others}}


def _about(opened: Opened) -> dict[str, Any]:
    artifact, manifest = opened.artifact, opened.artifact.manifest
    made_of = {"artifact": manifest.digest, "export": None if opened.face is None else opened.face.record.digest}
    named = {"artifact": str(artifact.directory), "model": manifest.model.name, "method": manifest.method.name}
    return {**named, "made_of": made_of}


def _assumed(artifact: Artifact) -> list[str]:
    """What `compress` says that it assumed instead of calibrating it: it costs answers."""
    return [f"not checked: {one}" for one in artifact.manifest.not_checked if "not calibrated" in one]


def _allowed(max_new: int | None, opened: Opened) -> int:
    """How many tokens are said at most; PromptError for a count that an export does not hold."""
    most = opened.max_new
    if max_new is None:
        return MAX_NEW if most is None else min(MAX_NEW, most)
    if max_new < 1 or (most is not None and max_new > most):
        held = "1 or more" if most is None else f"1..{most}, or export again with --max-new"
        raise PromptError(f"--max-new {max_new} does not fit; give {held}")
    return max_new


def _refused(preparer: Preparer, question: Question) -> str | None:
    try:
        preparer.words(question.text)
    except PromptError as error:
        return f"question {question.id}: {error}"
    return None


def _facts(opened: Opened, cast: Cast, wish: Wish) -> dict[str, Any]:
    """What every answer depends on beside its question."""
    artifact, runtime = opened.artifact, opened.runtime
    export = artifact.directory / EXPORT / RECORD
    exported = hashlib.sha256(export.read_bytes()).hexdigest() if runtime == "ort" else None
    runtimes = {role.runtime for role in cast.roles}
    spoken = [name for kind, names in _SPOKEN.items() if kind == "" or kind in runtimes for name in names]
    sides = [[role.name, role.runtime, role.tokens, len(role.runs), role.source] for role in cast.roles]
    return {
        "artifact": artifact.manifest.digest,
        "export": exported,
        "runtime": runtime,
        "sides": json.dumps(sides),
        "versions": " ".join(f"{name} {_version(name)}" for name in spoken),
        "budget": wish.tokens,
        "mean": wish.mean_tokens,
    }


def _version(name: str) -> str:
    """Of ONNX Runtime, which several distributions bring, what it says itself."""
    return str(import_module(name).__version__) if name == "onnxruntime" else version(name)


def _journal(out: Path | None, facts: dict[str, Any]) -> tuple[LineJournal, tuple[str, ...]]:
    """The journal of an earlier run of the same, or a new one, with a word on why the earlier one does not count."""
    path = None if out is None else journal_of(out)
    if path is None or not path.is_file():
        return LineJournal(path, facts, {}), ()
    earlier = read_journal(path)
    if earlier is None:
        raise ArtifactError(f"{path} is no journal of an evaluation; remove it, or choose another --out")
    changed = differences(earlier[0], facts)
    if changed:
        return LineJournal(path, facts, {}), (
            f"begun anew, an earlier run's answers do not count: {'; '.join(changed)}",
        )
    return LineJournal(path, facts, earlier[1]), ("answers of an interrupted run were taken over",)
