"""From a rewritten model to what a runtime loads, and the proof that both are equal."""
