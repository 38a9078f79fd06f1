"""`tokcarve run`: a question about a picture, answered by an artifact.

`--json`: artifact, runtime, image, prompt, provider (where it ran), answer, tokens (ids; a stop token is the last),
kept_indices (of the patches left behind the last stage, row by row from the top left), timings_ms {preprocess,
vision, embedding, prefill, first_token, decode: one per further token}, total (patches). With torch, vision, embedding
and prefill are one and null. These are times of a first, cold run; `tokcarve profile` measures. A method that keeps a
state between images takes several, one frame after the other: `frames` then lists image, answer, tokens, kept_indices,
timings_ms and pruned of each (unpruned until the history is full), and the rest is the last frame's. Several prompts
are turns about one image: `turns` lists prompt, answer and tokens of each, and there are no timings.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokcarve.cli.output import Progress, emit_json, print_facts, print_table, progress_bars

if TYPE_CHECKING:
    from PIL.Image import Image

    from tokcarve.exporters.device.answer import Answers, OnToken
    from tokcarve.exporters.device.route import Choice, Wish
    from tokcarve.recipes.artifact import Artifact

__all__ = ["run"]

_TORCH_MAX_NEW = 64
_TURN_MAX_NEW = 16  # leaves room for further turns in an export of 64


def run(
    image: Annotated[list[Path], typer.Option(help="The picture: JPEG, PNG, WebP, BMP or TIFF; frames: repeat.")],
    prompt: Annotated[list[str], typer.Option(help="The question about it; repeat it for several turns.")],
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Most tokens of the answer; as many as exported.")] = None,
    runtime: Annotated[Literal["ort", "torch"], typer.Option(help="Exported graphs, or the model in torch.")] = "ort",
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; the runtime's own choice.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Of a budget set: this one, not the router's.")] = None,
    mean_tokens: Annotated[int | None, typer.Option(help="Of a budget set: route for this mean.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Answer a question about a picture."""
    from tokcarve.exporters.device.route import Wish
    from tokcarve.passes.inputs.samples import open_image
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    wish = Wish(tokens=tokens, mean_tokens=mean_tokens)
    wish.named(found.manifest)
    pictures = [open_image(one) for one in image]
    with progress_bars() as progress:
        if len(prompt) > 1:
            reply = _turns(found, _only(found, pictures), prompt, max_new, runtime, threads, wish)
        else:
            answer = _with_ort if runtime == "ort" else _with_torch
            reply = answer(found, pictures, prompt[0], max_new, threads, progress, wish)
    for path, frame in zip(image, reply.get("frames", ()), strict=False):
        frame["image"] = str(path)
    fields = {"artifact": str(found.directory), "runtime": runtime, "image": str(image[-1]), "prompt": prompt[-1]}
    fields |= reply
    if as_json:
        emit_json("run", {**fields, "total": found.manifest.geometry.total})
    else:
        _print(fields, found)


def _with_ort(
    found: "Artifact",
    pictures: "list[Image]",
    prompt: str,
    max_new: int | None,
    threads: int | None,
    progress: Progress | None,
    wish: "Wish",
) -> dict[str, Any]:
    from tokcarve.exporters.device.answer import Answerer

    choice = _routed(found, pictures[0], threads, wish)
    answerer = Answerer(found.directory, threads=threads, budget=_budget(found, choice, wish))
    most = max_new if max_new is not None else answerer.record.max_new
    if answerer.asks:
        return _episode(found, pictures, prompt, max_new, threads)
    made = answerer.answer([_only(found, pictures)], [prompt], max_new, _on_token(progress, most))
    return {"provider": answerer.provider, **_said(made), **_chosen(choice)}


def _routed(found: "Artifact", picture: "Image", threads: int | None, wish: "Wish") -> "Choice | None":
    """What the exported router chooses for an image; None where there is nothing to choose."""
    from tokcarve.exporters.device.face import check_origin, read_export
    from tokcarve.exporters.device.route import route_in_ort
    from tokcarve.passes.inputs.images import load_image_processor

    check_origin(found.directory, read_export(found.directory), found.manifest)
    if wish.named(found.manifest) is not None:
        return None
    pixels = load_image_processor(found.processor)([picture])
    return route_in_ort(found.directory, pixels, wish.mean_tokens, threads)


def _budget(found: "Artifact", choice: "Choice | None", wish: "Wish") -> int | None:
    """The budget of a set that answers; None where there is one."""
    if found.manifest.router is None:
        return None
    return wish.tokens if choice is None else choice.tokens


def _chosen(choice: "Choice | None") -> dict[str, Any]:
    return {} if choice is None else {"router": choice.record()}


def _said(made: "Answers") -> dict[str, Any]:
    return {
        "answer": made.text[0],
        "tokens": list(made.tokens[0]),
        "kept_indices": made.kept_indices[0].tolist(),
        "timings_ms": made.timings[0].record(),
    }


def _only(found: "Artifact", pictures: "list[Image]") -> "Image":
    from tokcarve.passes.inputs.prompt import PromptError

    if len(pictures) > 1:
        raise PromptError(
            f"{len(pictures)} images were given, and a model carved by {found.manifest.method.name} answers about one; "
            "give one --image"
        )
    return pictures[0]


def _episode(
    found: "Artifact", pictures: "list[Image]", prompt: str, max_new: int | None, threads: int | None
) -> dict[str, Any]:
    from tokcarve.exporters.device.episode import Episode

    episode = Episode(found.directory, threads=threads)
    made = [episode.answer(picture, prompt, max_new) for picture in pictures]
    frames = [{"image": "", "pruned": frame.pruned, **_said(frame.answers)} for frame in made]
    return {"provider": episode.pruned.provider, **_said(made[-1].answers), "frames": frames}


def _turns(
    found: "Artifact",
    picture: "Image",
    prompts: list[str],
    max_new: int | None,
    runtime: str,
    threads: int | None,
    wish: "Wish",
) -> dict[str, Any]:
    if runtime == "ort":
        from tokcarve.exporters.device.conversation import converse

        choice = _routed(found, picture, threads, wish)
        provider, talk = converse(found.directory, picture, threads, _budget(found, choice, wish))
    else:
        from tokcarve.exporters.reply import converse_in_torch

        provider, talk, choice = converse_in_torch(found, picture, threads, wish)
    most = max_new if max_new is not None else _TURN_MAX_NEW
    made = [talk.ask(prompt, most) for prompt in prompts]
    turns = [{"prompt": p, "answer": t.text, "tokens": list(t.tokens)} for p, t in zip(prompts, made, strict=True)]
    last = {"answer": made[-1].text, "tokens": list(made[-1].tokens), "kept_indices": talk.voice.kept.tolist()}
    return {"provider": provider, **last, "timings_ms": None, "turns": turns, **_chosen(choice)}


def _with_torch(
    found: "Artifact",
    pictures: "list[Image]",
    prompt: str,
    max_new: int | None,
    threads: int | None,
    progress: Progress | None,
    wish: "Wish",
) -> dict[str, Any]:
    from tokcarve.exporters.reply import reply_in_torch

    most = max_new if max_new is not None else _TORCH_MAX_NEW
    picture = _only(found, pictures)
    made = reply_in_torch(found, picture, prompt, most, threads, _on_token(progress, most), wish)
    return {
        "provider": made.device,
        "answer": made.text,
        "tokens": list(made.tokens),
        "kept_indices": list(made.kept_indices),
        "timings_ms": made.timings,
        **_chosen(made.choice),
    }


def _on_token(progress: Progress | None, most: int) -> "OnToken | None":
    if progress is None:
        return None
    count = 0

    def tick(row: int, token: int) -> None:
        nonlocal count
        count += 1
        progress("answering", count, most)

    return tick


def _print(fields: dict[str, Any], found: "Artifact") -> None:
    timings, kept = fields["timings_ms"], fields["kept_indices"]
    left = f"{len(kept)} of {found.manifest.geometry.total}, patches {_ranges(kept)}"
    ran = f"{fields['provider']} ({fields['runtime']})"
    routed = _spelled(fields.get("router"))
    if "turns" in fields:
        print_facts(str(found.directory), {"kept": left, "router": routed, "ran on": ran})
        rows = [(one["prompt"], one["answer"].strip(), len(one["tokens"])) for one in fields["turns"]]
        print_table("turns", ("question", "answer", "tokens"), rows)
        return
    steps = timings["decode"]
    parts = [f"{timings[name]:.1f} {name}" for name in ("vision", "embedding", "prefill") if timings[name] is not None]
    facts = {
        "question": fields["prompt"],
        "answer": fields["answer"].strip() or "(nothing: the first token was a stop token)",
        "kept": left,
        "router": routed,
        "first token": f"{timings['first_token']:.1f} ms" + (f" ({', '.join(parts)})" if parts else ""),
        "further tokens": f"{len(steps)}, {sum(steps) / len(steps):.1f} ms each" if steps else None,
        "ran on": f"{ran}, image prepared in {timings['preprocess']:.1f} ms",
    }
    print_facts(str(found.directory), facts)
    if "frames" in fields:
        frames = [
            (one["image"], one["answer"].strip(), "pruned" if one["pruned"] else "unpruned", len(one["kept_indices"]))
            for one in fields["frames"]
        ]
        print_table("frames", ("image", "answer", "graphs", "visual tokens"), frames)


def _spelled(choice: dict[str, Any] | None) -> str | None:
    if choice is None:
        return None
    of = (f"{tokens}: {loss:.2f}" for tokens, loss in zip(choice["budgets"], choice["predicted"], strict=True))
    return f"{choice['tokens']} tokens ({choice['ms']:.1f} ms; predicted log loss of {', '.join(of)})"


def _ranges(indices: list[int]) -> str:
    """0, 1, 2, 7 as "0-2, 7"; -1 is the [CLS] row."""
    runs: list[list[int]] = []
    for index in sorted(set(indices) - {-1}):
        if runs and runs[-1][-1] == index - 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    spelled = [f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in runs]
    return ", ".join(["[CLS]"] * (-1 in indices) + spelled)
