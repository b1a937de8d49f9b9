"""From decoded images to a network's input: crops, colour, resampling and their random parameters."""
