"""Fetch data sets into a folder: python data_scripts/get.py cifar10 cifar100 --root data (the same as 'mixrepro data get')."""

import argparse
import sys

from mixrepro.data.fetch import fetch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--root", default="data")
    args = parser.parse_args()
    try:
        for name in args.names: print(fetch(name, args.root))
    except (OSError, ValueError) as e: sys.exit(f"get.py: {e}")
