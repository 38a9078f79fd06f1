"""A made-up question that fills every row of an export, for measuring; graphs of fixed shape cost the same for any."""

import numpy as np

from tokcarve.exporters.device.pipeline import Ids, Pipeline
from tokcarve.exporters.device.session import Array

__all__ = ["probe"]


def probe(pipeline: Pipeline) -> tuple[Array, Ids, Ids]:
    """(pixel_values, input_ids, prompt_lengths) of a full batch: seeded noise, the image, and text up to the limit."""
    record = pipeline.record
    graph = pipeline.graph("vision")
    noise = np.random.default_rng(0).standard_normal(graph.shapes["pixel_values"])
    image = record.geometry.image_token_id
    text = [token for token in range(record.max_text + 1) if token != image][: record.max_text]
    row = text[:1] + [image] * pipeline.side.tokens + text[1:]
    ids: Ids = np.tile(np.array(row, np.int64), (record.batch, 1))
    return noise.astype(graph.types["pixel_values"]), ids, np.full(record.batch, len(row), np.int64)
