"""The verbs: words in, words out."""
