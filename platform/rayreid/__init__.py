"""rayreid: self-supervised pre-training for person re-identification, distributed with Ray.

The rooms and what may import what are described in `docs/architecture.md`.
"""

__version__ = "0.1.0"
