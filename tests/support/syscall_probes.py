"""Runs inside a job: makes every system call that it is told of, and prints {name: errno} as JSON.

Standard library only; it is handed to /usr/bin/python3 of the container. A call is made with
the arguments given: zeros, where a call is not to be stopped for them, so that one that is not
stopped does as little as it can.
"""

import ctypes
import errno
import json
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)


def attempt(number, arguments):
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a % 2**64) for a in arguments)) == -1:
        return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))
    return "returned"


if __name__ == "__main__":
    signal.alarm(60)  # for a call that should have been stopped, and waits
    with open(sys.argv[1]) as wanted:
        print(json.dumps({name: attempt(*call) for name, call in json.load(wanted).items()}))
