"""Images: where they come from, how they are stored, augmented and drawn into batches."""
