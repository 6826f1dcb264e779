"""Read data sets again and name every file that is wrong: python data_scripts/verify.py cifar10 --root data (the same as 'mixrepro data verify')."""

import argparse
import sys

from mixrepro.data.fetch import verify

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="see 'mixrepro data list'")
    parser.add_argument("--root", help="folder of the data sets; MIXREPRO_DATA or data unless given")
    args = parser.parse_args()
    try: wrong = {name: verify(name, args.root) for name in args.names}
    except (OSError, ValueError) as e: sys.exit(f"verify.py: {e}")
    for name, lines in wrong.items(): print(*(f"{name}: {line}" for line in lines or ["whole"]), sep="\n")
    sys.exit(any(wrong.values()))
