"""A small process that has imported what its children need, and forks them within milliseconds.

It has one thread, opens no file and decodes nothing; it ends, and its children with it, once the process
that started it closes the connection or is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

from fairseq_openvino import machine

MAX_ANSWER_BYTES = 1 << 12


class ForkServer:
    """The side of the process that started it; threads take turns."""

    def __init__(self, command: str, *arguments: int) -> None:
        """Start it.

        Args:
            command: Python that calls `serve` with the number of a descriptor, `sys.argv[1]`.
            arguments: what follows in `sys.argv`.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command, *map(str, (theirs.fileno(), *arguments))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._connection = Connection(ours.detach())
        self._turn = threading.Lock()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not self._connection.closed and self._process.poll() is None

    def fork(self, timeout_seconds: float) -> tuple[int, Connection]:
        """A child, and the connection to it, on which nothing takes longer than that.

        Raises:
            OSError: there is no room for one more process or descriptor, or the server is gone.
            EOFError: the server is gone.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            limit = struct.pack("ll", int(timeout_seconds), int(timeout_seconds % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, limit)
            pid = self._asked(0, theirs.fileno())
            if isinstance(pid, str):
                raise OSError(pid)
            return pid, Connection(ours.detach())

    def end(self, pid: int) -> str:
        """End a child; returns how it ended."""
        try:
            code = int(self._asked(pid))
        except (OSError, EOFError):
            return "the end of the process it was forked from"
        return machine.how_ended(code)

    def close(self) -> None:
        """End it and all children."""
        self._connection.close()
        self._process.wait()

    def _asked(self, pid: int, descriptor: int | None = None) -> int | str:
        """An answer; whoever is interrupted before it comes leaves a server that cannot be asked."""
        with self._turn:
            try:
                self._connection.send_bytes(json.dumps(pid).encode())
                if descriptor is not None:
                    send_handle(self._connection, descriptor, self.pid)
                answer: int | str = json.loads(self._connection.recv_bytes(MAX_ANSWER_BYTES))
            except BaseException:
                self._connection.close()
                raise
        return answer


def serve(descriptor: int, child: Callable[[Connection], None]) -> None:
    """The server: 0 and a socket ask for a child at its other end, a number for the end of that child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody can be waited for
    connection, children = Connection(descriptor), set[int]()
    try:
        with suppress(EOFError, OSError):
            while True:
                pid = json.loads(connection.recv_bytes())
                answer = _ended(pid, children) if pid else _forked(connection, children, child)
                connection.send_bytes(json.dumps(answer).encode())
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _ended(pid: int, children: set[int]) -> int:
    """Its exit code, or the signal that ended it, below 0."""
    children.remove(pid)  # nobody but this function waits for it: the number is still its own
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _forked(
    connection: Connection, children: set[int], child: Callable[[Connection], None]
) -> int | str:
    """The number of a new child, or why there is none."""
    theirs = recv_handle(connection)
    try:
        pid = os.fork()
    except OSError as error:
        return str(error)
    if not pid:
        code = 1
        try:
            connection.close()
            machine.limit(RLIMIT_CORE=0)
            child(Connection(theirs))
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    children.add(pid)
    return pid
