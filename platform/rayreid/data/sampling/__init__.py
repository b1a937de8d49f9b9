"""Which images each worker sees at each step."""
