"""What tests ask about the copies of a store's shards in a cache."""

from pathlib import Path

from rayreid.data.store.store import ImageStore


def copies(cache: Path) -> set[str]:
    """Return the checksums of the shards that have a copy."""
    return {path.stem for path in cache.glob("*.arrow")}


def checksums(store: ImageStore) -> list[str]:
    return [shard["checksum"] for shard in store.manifest["shards"]]


def sizes(store: ImageStore) -> list[int]:
    return [shard.size() for shard in store.files]


def first_rows(store: ImageStore) -> list[int]:
    """Return the first row of each shard."""
    return [store.rows_of_keys([f"{shard}-0.png"])[0] for shard in range(len(store.files))]


def images(store: ImageStore) -> list[bytes]:
    """Return the bytes of all images, read one after another."""
    return [bytes(store.encoded(row)) for row in range(len(store))]
