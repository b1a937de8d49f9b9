"""Names of per-row metrics and files."""


def slug(label: str) -> str:
    """Return a label in a form that can be part of a metric's or a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)
