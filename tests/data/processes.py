"""Work in several processes that are forks of this one, so that what is imported is imported once.

Each process has a session of its own, ends with ``os._exit`` (a short gloo process sometimes aborts on the way out),
and leaves its result in a file.
"""
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress


def fork(world, work, *args):
    """Start ``work(rank, *args)`` in ``world`` processes that find one another; returns their ids."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.setsid()  # so that its workers can be killed with it
            if world > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                                  MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            work(rank, *args)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return children


def finish(children, kill=False):
    """Wait for (or kill) all; as soon as one has died the others are killed. Returns the exit statuses."""
    statuses = {}
    while len(statuses) < len(children):
        for child in children:
            if kill:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child, signal.SIGKILL)
            if child not in statuses:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[child] = status
                    kill = kill or bool(status)
        time.sleep(0.01)
    return list(statuses.values())
