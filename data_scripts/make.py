"""Make the corrupted or perturbed version of a data set or of your own images: python data_scripts/make.py cifar10-c --root data (like 'mixrepro data make')."""

import argparse
import sys
from pathlib import Path

from mixrepro.data.make import make

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", metavar="WHAT", help="cifar10-c, cifar10-p, ... or the path of a .npy with images (N, H, W, C)")
    parser.add_argument("--root", help="folder of the data sets; MIXREPRO_DATA or data unless given")
    parser.add_argument("--to", help="the set's own folder; WHAT-made below the root unless given")
    parser.add_argument("--kind", nargs="*", help="corruptions or perturbations; all that are scored unless given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    what = Path(args.what) if args.what.endswith(".npy") else args.what
    try: print(make(what, args.root, args.to, args.kind, seed=args.seed))
    except (OSError, ValueError, TypeError) as e: sys.exit(f"make.py: {e}")
