"""What a model is given: pictures, prompts, and sets of both."""
