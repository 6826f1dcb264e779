"""Fetch data sets, or find them on disk: python data_scripts/get.py cifar10 svhn --root data [--from FOLDER_OR_ARCHIVE_OR_ADDRESS] (the same as 'mixrepro data get')."""

import argparse
import sys

from mixrepro.data.fetch import fetch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="see 'mixrepro data list'")
    parser.add_argument("--root", help="folder of the data sets; MIXREPRO_DATA or data unless given")
    parser.add_argument("--from", dest="source", help="looked at first: a folder, an archive or an address")
    args = parser.parse_args()
    try: print(*fetch(args.names, args.root, args.source), sep="\n")
    except (OSError, ValueError) as e: sys.exit(f"get.py: {e}")
