"""Figures to estimate with where this output root has no earlier run: measured once, on the machines that are named.

They are those of docs/performance.md. Other machines differ, so each figure is a range, and every estimate that is made
from one says so.
"""

from typing import Final

from rayreid.pipeline.forecast.spans import Span

TABLE: Final = "docs/performance.md"

CPU_GFLOPS_PER_CORE: Final = Span(50.0, 80.0, 140.0)
"""10⁹ operations per second of a training or a forward pass on one core. "A DINO step": 8 images of 101 GFLOP
in 5.16 s (float32) and 2.89 s (bfloat16) on 2 cores, hence 78 and 140; "Scoring": 14.5 images/s of 10.9 GFLOP on 2
cores, hence 79. Small networks reach less."""

GPU_TRAINING_GFLOPS: Final = Span(90_000.0, 196_000.0, 232_000.0)
"""The same of a training on one GPU. "On a GPU" (H200): a compiled step of DINO with ViT-S/16 249 TFLOP/s (`patchify`),
211 with its images fed from the host, 194 with `ics`; an eager one 169, one written the plain way 97. These count work
that is left out in the last block; what is counted here is 7 % less."""

GPU_STEP_SECONDS: Final = Span(0.01, 0.025, 0.06)
"""Least duration of an optimizer step on GPUs, however few images each of them gets: kernels have to be started. Not
measured yet; a full step of 256 images takes 85 ms ("What bounds it")."""

GPU_INFERENCE_GFLOPS: Final = Span(110_000.0, 190_000.0, 215_000.0)
"""The same of scoring on one GPU; "On a GPU" (H200): 230 TFLOP/s from decoded images, of which 7 % are left out."""

GPU_IMAGES_FROM_JPEG: Final = Span(2_500.0, 2_900.0, 3_800.0)
"""Images per second and GPU, decoded from JPEGs of 256 × 128 on 16 cores; "On a GPU"."""

INGESTED_PER_CORE: Final = Span(1_000.0, 4_100.0, 6_400.0)
"""Images per second and core that an ingest reads, checks and writes; benchmarks/README.md, `ingest.py`: 4,100 of
20,000 images, 6,400 of 200,000. A slow disk or a bucket bounds it."""

DRAWN_PER_CORE: Final = Span(400.0, 1_000.0, 3_500.0)
"""The same of the dataset `synthetic`, which draws its images; "Fixed costs": 5 s for 2,576 of them."""

MEASURED_PER_CORE: Final = Span(900.0, 2_000.0, 2_900.0)
"""Images per second and core whose quality is measured; "Measures of quality" (960 of 256 × 128, 2,870 of 128 × 64)."""

RANKING_CORE_SECONDS: Final = {"dedup": (54.0, 1.5), "cluster": (56.0, 1.5), "hierarchical": (198.0, 5 / 3)}
"""Seconds of one core in which a strategy groups 1,000,000 images by features of 384 numbers, and the power of the
number of images with which they grow; benchmarks/README.md, `curating.py` (`cluster`: near-duplicates with 1,000
clusters)."""

RANKING_THREADS: Final = Span(0.5, 0.75, 1.5)
"""Time on several cores over that of one; with two, 0.61, 0.86 and 1.47 were measured."""

FEATURE_WIDTH: Final = 384
"""Numbers of a feature, for the arithmetic of similarities."""

COMMAND_SECONDS: Final = Span(10.0, 18.0, 30.0)
"""Seconds that a command takes beside its stages: Ray, MLflow, tables. "Fixed costs": 289 s of a demo less its stages.
"""

STAGE_SECONDS: Final = {
    "ingest": Span(1.0, 3.0, 6.0),
    "pretrain": Span(9.0, 12.0, 16.0),
    "finetune": Span(8.0, 9.0, 11.0),
    "adapt": Span(9.0, 12.0, 16.0),
    "score": Span(2.0, 4.0, 16.0),
    "features": Span(2.0, 4.0, 16.0),
    "quality": Span(2.0, 4.0, 8.0),
    "priority": Span(0.5, 1.0, 4.0),
    "select": Span(0.1, 0.5, 2.0),
    "evaluate": Span(3.0, 4.5, 9.0),
}
"""Seconds of a stage before its first step and after its last one; "Fixed costs" (9 s before a pre-training's first
step, 8 s of a fine-tuning, 3 to 9 s of an evaluation), "Scoring" (16 s to start the actors of a large pool)."""

OTHER_STAGE_SECONDS: Final = Span(0.5, 2.0, 6.0)
"""The same of stages that only read and write a file."""

GPU_COMPILE_SECONDS: Final = Span(0.0, 18.0, 36.0)
"""Seconds that the first compiled steps of a training take longer; "On a GPU"."""

JPEG_BYTES_PER_PIXEL: Final = Span(0.2, 0.37, 0.8)
"""Bytes of a stored image: about 12 kB at 256 × 128, more per pixel where images are small."""

IMAGE_PIXELS: Final = 256 * 128
"""Size of an image of a dataset that does not tell its own."""

EVALUATION_BYTES: Final = Span(4e6, 10e6, 30e6)
"""Bytes of an evaluation, its figures and results per query, and of the copy that MLflow keeps."""

PUBLISHED_IMAGES: Final = {
    "luperson": {"pool": 4_180_243},
    "market1501": {"train": 12_936, "query": 3_368, "gallery": 19_732},
    "msmt17": {"train": 32_621, "query": 11_659, "gallery": 82_161},
    "dukemtmc": {"train": 16_522, "query": 2_228, "gallery": 17_661},
}
"""Images of published datasets per split, to estimate with where the dataset is not here. Keys are the dataset's name,
or that of its folder, in lower case and without punctuation. Source: the papers of the datasets."""
