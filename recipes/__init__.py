"""What was asked for and what came of it: recipes, artifacts and the way between them."""
