"""What the training stages share: where they start, what they watch, and what may end them."""
