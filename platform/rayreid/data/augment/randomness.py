"""Counter-based random numbers: every draw is a pure function of its address.

The address of a draw is (seed, epoch, key, crop, draw number), so an image gets the same augmentation in every batch,
worker and resumed run. The hash is the finaliser of splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014), folded once per coordinate of the address.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: odd, so distinct values stay distinct
_MASK = (1 << 64) - 1
_PERMUTATION = 0x7065726D  # keeps the numbers of permutations apart from those of keys


def key_hash(key: str) -> int:
    """Return the 64-bit BLAKE2b hash of an image's key, in [0, 2**64)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _fold(state: _Words, value: _Words) -> _Words:
    """Return the `value`-th output of a splitmix64 generator that starts at `state`; broadcasts."""
    z = state + (value + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _root(seed: int, epoch: int) -> _Words:
    # Arrays, because NumPy warns of the (intended) wrap-around of scalars.
    root = np.zeros(1, np.uint64)
    for value in (seed, epoch):
        root = _fold(root, np.array([value & _MASK], np.uint64))
    return root


def uniforms(seed: int, epoch: int, keys: Sequence[str], crops: int, draws: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers for each crop of each image.

    Args:
        seed: The run's seed.
        epoch: The epoch, counted from 0.
        keys: The images' keys, B of them.
        crops: C, the number of crops of each image.
        draws: D, the number of random numbers per crop.

    Returns:
        float64 (B, C, D) in [0, 1), with 53 random bits each. Entry (b, c, d) depends only on (seed, epoch, keys[b], c,
        d), not on the other keys or on the numbers of crops and draws.
    """
    hashes = np.array([key_hash(key) for key in keys], np.uint64)
    state_B = _fold(_root(seed, epoch), hashes)
    state_BC = _fold(state_B[:, None], np.arange(crops, dtype=np.uint64))
    words = _fold(state_BC[:, :, None], np.arange(draws, dtype=np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Return a permutation of 0 … n−1, int64 (n,), that depends only on (seed, epoch, n).

    It sorts hashes instead of calling NumPy's generators, whose streams may change between NumPy versions.
    """
    state = _fold(_root(seed, epoch), np.array([_PERMUTATION], np.uint64))
    return np.argsort(_fold(state, np.arange(n, dtype=np.uint64)), kind="stable").astype(np.int64)
