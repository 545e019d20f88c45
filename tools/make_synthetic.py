"""Make the generated pedestrians: python tools/make_synthetic.py --root reid-data."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback

from ppreid_plugin.data.pedestrians import make_pedestrians


def main(argv: list[str] | None = None) -> int:
    """Parse, make, print; 0 if the data set is there, 2 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--root", default="reid-data", help="folder to write synthetic_pedestrians into")
    parser.add_argument("--num-train-ids", type=int, default=100, help="people for training")
    parser.add_argument("--num-test-ids", type=int, default=100, help="other people, for query and gallery")
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    parser.add_argument("--workers", type=int, default=None, help="processes; None: one a processor")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        folder = make_pedestrians(
            args.root,
            args.num_train_ids,
            args.num_test_ids,
            args.seed,
            workers=args.workers,
            overwrite=args.overwrite,
        )
    except (ValueError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Error: interrupted; nothing was written.", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when asked to end, as after Ctrl-C
    sys.exit(main())
