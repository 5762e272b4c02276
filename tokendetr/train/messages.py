"""Messages between the ranks of a run: lines of JSON over a socket."""

import contextlib
import json
import socket
from typing import Any

__all__ = ["MessageSocket"]

_MAX_UNAUTHENTICATED_BYTES = 4096  # of a line from a connection that has not sent the secret


class MessageSocket:
    """Socket for messages, one JSON object per line.

    Attributes:
        rank: rank of the process at the other end; None until that has sent the run's secret.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rank: int | None = None
        self._rest = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # a machine that lost power does not close its connections
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message; a lost connection is noticed by :meth:`receive`."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived; None if the connection has ended.

        It counts as ended if it carries anything but messages.
        """
        try:
            content = self.socket.recv(1 << 16)
        except OSError:
            content = b""
        if not content:
            return None
        *lines, self._rest = (self._rest + content).split(b"\n")
        if self.rank is None and len(self._rest) > _MAX_UNAUTHENTICATED_BYTES:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return [m for m in messages if isinstance(m, dict)]
