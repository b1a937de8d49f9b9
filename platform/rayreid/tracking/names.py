"""What metrics and files are called that are one of several rows'."""


def slug(label: str) -> str:
    """A label as part of a metric's or file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)
