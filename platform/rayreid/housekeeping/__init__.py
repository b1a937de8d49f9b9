"""The artifacts of an output root: what refers to what, their list, and the deletion of what nothing refers to."""
