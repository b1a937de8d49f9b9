"""What one GPU does: pre-training steps, scoring, evaluation and pseudo labels, beside the card's own ceilings.

Needs neither Ray nor MLflow, faiss or pydantic. Rows come most important first, and so do the parts of a row: first its
rate, then what explains it, and a comparison of results with the CPU's. Each part is printed, and appended to `--out`,
as soon as it is measured, and none is begun after `--seconds`. A part that fails costs only itself, unless it is the
first of its row. The script ends with status 1 if a part failed, or if results differ from the CPU's.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import torch
from gpu_rows import ceilings, clustering, evaluation, preparing, scoring, steps
from gpu_rows.part import Row, Values

ROWS: dict[str, Row] = {
    "ceilings": ceilings.measure,
    "step_patchify": steps.measured("patchify", 256),
    "step_ics": steps.measured("ics", 256),
    "step_patchify_eager": steps.measured("patchify", 256, compile=False),
    "step_patchify_plain": steps.plain("patchify", 256),
    "score_decoded": scoring.decoded,
    "score_jpegs": scoring.jpegs,
    "score_mixed": scoring.mixed,
    "evaluate": evaluation.measure,
    "pseudo_labels": clustering.measure(100_000),
    "augment": preparing.measure,
    "step_ics_eager": steps.measured("ics", 256, compile=False),
    "step_ics_plain": steps.plain("ics", 256),
}
MORE: dict[str, Row] = {
    "step_patchify_64": steps.measured("patchify", 64),
    "pseudo_labels_million": clustering.measure(1_000_000),
    "step_vit_base": steps.measured("patchify", 128, "vit_base"),
    "step_vit_base_checkpointed": steps.measured("patchify", 128, "vit_base", checkpointed=True),
    "extract": scoring.extract,
    "attention": ceilings.attention,
}


def measured(rows: Mapping[str, Row], args: argparse.Namespace) -> Iterator[Values]:
    """Yield the figures of each part, with the names of its row and its own."""
    began = time.monotonic()
    for name, row in rows.items():
        with closing(parts_of(row, args)) as parts:
            while True:
                if time.monotonic() - began > args.seconds:
                    yield {"row": name, "left_out": f"{args.seconds} s are over"}
                    break
                part = next(parts, None)
                if part is None:
                    break
                yield {"row": name, **part}
        # Only now does nothing hold the row's tensors any more.
        gc.collect()
        torch.cuda.empty_cache()


def parts_of(row: Row, args: argparse.Namespace) -> Iterator[Values]:
    """Yield the figures of each part of a row, or the error of a part; after an error of the first one, no more."""
    first = True
    with closing(row(args)) as parts:
        while True:
            name, started = "preparation", time.monotonic()
            try:
                name, measure = next(parts)
                values = measure()
            except StopIteration:
                return
            except Exception as error:
                traceback.print_exc()
                values = {"error": f"{type(error).__name__}: {error}"[:300]}
            yield {"part": name, **values, "seconds": round(time.monotonic() - started, 1)}
            if first and "error" in values:
                return
            first = False


def failed(values: Values) -> bool:
    return "error" in values or values.get("same", "yes") != "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="begin nothing after this time")
    parser.add_argument("--all", action="store_true", help="measure the less important rows, too")
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, *MORE), help="measure these alone")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="a line of JSON for each part of a row")
    parser.add_argument("--device", default="cuda", help="cpu: every row at toy size, to try the script itself")
    parser.add_argument("--profile", type=Path, help="folder for tables of the kernels' times")
    args = parser.parse_args()
    args.toy = args.device == "cpu"
    if not args.toy and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: --device cpu tries the script at toy size")
    torch.set_float32_matmul_precision("highest")
    every = {**ROWS, **MORE}
    chosen = {name: every[name] for name in args.rows} if args.rows else {**ROWS, **(MORE if args.all else {})}
    device = "cpu" if args.toy else torch.cuda.get_device_name()
    faults = 0
    with args.out.open("a") as out:
        for values in measured(chosen, args):
            out.write(json.dumps({"device": device, "torch": torch.__version__, **values}) + "\n")
            out.flush()
            shown = "  ".join(f"{k}={v:,.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
            print(shown, flush=True)
            faults += failed(values)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
