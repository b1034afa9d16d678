"""What tokens are good for, from a TokenPyramid and the model that made it: masks, spans, names, answers."""
