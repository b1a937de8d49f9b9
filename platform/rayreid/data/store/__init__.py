"""The image store: shards of encoded images and their index, and the lists and tables that accompany it."""
