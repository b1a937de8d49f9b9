"""What one GPU does: pre-training steps, scoring, evaluation and pseudo labels, beside the card's own ceilings.

Needs neither Ray nor MLflow, faiss or pydantic. Rows come most important first; each is printed, and appended to
`--out`, as soon as it is measured, and none is begun after `--seconds`. Results are compared with the CPU's as it goes:
a row whose results differ says so and the script ends with status 1.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu_rows import ceilings, clustering, evaluation, preparing, scoring, steps

Row = Callable[[argparse.Namespace], dict[str, float | str]]

ROWS: dict[str, Row] = {
    "ceilings": ceilings.measure,
    "step_patchify": steps.compiled("patchify", 256),
    "step_ics": steps.compiled("ics", 256),
    "step_patchify_eager": steps.eager("patchify", 256),
    "step_patchify_plain": steps.plain("patchify", 256),
    "score_decoded": scoring.decoded,
    "score_jpegs": scoring.jpegs,
    "score_mixed": scoring.mixed,
    "evaluate": evaluation.measure,
    "pseudo_labels": clustering.measure(100_000),
    "augment": preparing.measure,
    "step_ics_eager": steps.eager("ics", 256),
    "step_ics_plain": steps.plain("ics", 256),
}
MORE: dict[str, Row] = {
    "step_patchify_64": steps.compiled("patchify", 64),
    "pseudo_labels_million": clustering.measure(1_000_000),
    "step_vit_base": steps.compiled("patchify", 128, "vit_base"),
    "extract": scoring.extract,
    "attention": ceilings.attention,
}


def measured(rows: dict[str, Row], args: argparse.Namespace) -> Iterator[dict[str, float | str]]:
    """Yield a dictionary a row; a row that fails says why, and the others go on."""
    began = time.monotonic()
    for name, row in rows.items():
        if time.monotonic() - began > args.seconds:
            yield {"row": name, "left_out": f"{args.seconds} s are over"}
            continue
        started = time.monotonic()
        try:
            values = row(args)
        except Exception as error:
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
        yield {"row": name, **values, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="begin no row after this time")
    parser.add_argument("--all", action="store_true", help="measure the less important rows, too")
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, *MORE), help="measure these alone")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="a line of JSON a row")
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
            line = json.dumps({"device": device, "torch": torch.__version__, **values})
            out.write(line + "\n")
            out.flush()
            shown = "  ".join(f"{k}={v:,.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
            print(shown, flush=True)
            faults += "error" in values or values.get("same") == "NO"
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
