"""Functions in several processes that find each other as those of ``torchrun`` do, without starting interpreters."""

import multiprocessing
import os
import socket
import sys
import time

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ppreid_plugin.cli", "ppreid_plugin.build"])


def _main(function, rank, size, port, arguments):
    os.environ.update(OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    sys.exit(function(rank, *arguments))


def run_ranks(function, *arguments, size=2, limit_s=300.0, grace_s=10.0):
    """Call ``function(rank, *arguments)`` in so many processes; return their exit codes (None: still there, killed).

    Once one has failed the others have ``grace_s`` seconds to fail by themselves (``torchrun`` kills them at once).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_context.Process(target=_main, args=(function, rank, size, port, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    end = time.monotonic() + limit_s
    while time.monotonic() < end and any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + grace_s)
            grace_s = float("inf")
        time.sleep(0.1)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
