"""The choice of the images that each worker sees at each step."""
