"""The bundled scenes as files: a JSONL for `tokcarve eval --data`, and a task of lmms-eval over the same questions.

    python benchmarks/lmms_task.py DIR --count 24
    tokcarve eval ARTIFACT --data DIR/questions.jsonl --floor 0.5
    lmms-eval --model tokcarve --model_args artifact=ARTIFACT --include_path DIR --tasks tokcarve_scenes

The task scores by its own rule, equal but for case and white space; on one-word answers that is exact match.
"""

import argparse
import json
from pathlib import Path

from tokcarve.tiny import Sample, evaluation

TASK = """task: tokcarve_scenes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.to_visual
doc_to_text: "question"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
process_results: !function utils.process_results
metric_list:
  - metric: equal
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""

UTILS = '''"""What the task `tokcarve_scenes` needs: its images, and its score."""

from pathlib import Path

from PIL import Image


def to_visual(doc):
    """The one image of a question."""
    return [Image.open(Path(__file__).parent / doc["image"])]


def process_results(doc, results):
    """1 for an answer that is equal but for case and white space."""
    return {"equal": float(results[0].strip().lower() == doc["answer"].strip().lower())}
'''


def write(folder: Path, samples: list[Sample]) -> None:
    """Images, questions, task and its functions."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, one in enumerate(samples):
        name = f"images/{one.scene.seed}.png"
        one.image.save(folder / name)
        fields = {
            "id": str(number),
            "image": name,
            "question": one.question,
            "answer": one.answer,
            "family": one.family,
        }
        lines.append(json.dumps(fields) + "\n")
    data = folder / "questions.jsonl"
    data.write_text("".join(lines))
    (folder / "tokcarve_scenes.yaml").write_text(TASK.format(data=data.resolve()))
    (folder / "utils.py").write_text(UTILS)


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()
    write(options.folder, list(evaluation(options.count)))


if __name__ == "__main__":
    main()
