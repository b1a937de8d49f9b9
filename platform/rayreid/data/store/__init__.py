"""The image store: shards of encoded images, their index, and lists and tables of the same form."""
