"""What is written is left to the operating system to bring to the disk: no test cuts the power, and the suite would wait minutes for it."""

import os


def fsync(fd) -> None:
    "As `os.fsync`, but without the wait; a file that is not open is an error here, too."
    os.fstat(fd if isinstance(fd, int) else fd.fileno())


def install(): os.fsync = fsync
