"""The token graph, the methods and the passes that rewrite it."""
