"""How good is a model? Scores, the features they are of, and reports."""
