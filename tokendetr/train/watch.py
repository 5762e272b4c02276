"""End all processes of a run when one of them fails, with that one's error.

A collective operation waits for every rank, indefinitely (nccl) or until a connection breaks
(gloo). So each rank keeps a separate connection to rank 0. A failing rank reports its error over it
before it ends; if it is killed, the operating system closes the connection. Rank 0 forwards the
first error, and a thread in every rank then ends its process, whatever the main thread waits for.

Connections are accepted only with the run's secret.
"""

import contextlib
import hmac
import logging
import multiprocessing
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from tokendetr.train.failures import Failure
from tokendetr.train.messages import MessageSocket
from tokendetr.train.network import listener
from tokendetr.train.stop import StopSignals

__all__ = ["Hub", "Watch", "end_process"]

logger = logging.getLogger("tokendetr.train")

_CONSEQUENCE_SECONDS = 2.0  # that a possible cause has to arrive after its consequence
_ANSWER_SECONDS = 6.0  # that a failing rank waits for the run's first failure, to print that one
_LOST = (
    "error: the process of rank {rank} ended without an error message. It was killed; most often "
    "the system does that when memory runs out (see dmesg)"
)


class Hub:
    """Rank 0's side: collect the ranks' errors, and forward the first one to all.

    Args:
        host: address to listen at: the host of the rendezvous.
        world_size: number of ranks.

    Attributes:
        address: (host, port) that the ranks connect to.
        secret: what a rank must send first.
        is_empty: set once every rank is done or lost.
    """

    def __init__(self, host: str, world_size: int) -> None:
        try:
            self._listener = listener(host)
        except OSError:  # the machine cannot bind the address by which others reach it (NAT)
            self._listener = socket.create_server(("", 0))
        self.address = (host, int(self._listener.getsockname()[1]))
        self.secret = secrets.token_hex(16)
        self._world_size = world_size
        self._peers: dict[int, MessageSocket] = {}
        self._done: set[int] = set()
        self._ending: Failure | None = None
        self._unexplained: tuple[float, Failure] | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.is_empty = threading.Event()
        threading.Thread(target=self._serve, name="watch-hub", daemon=True).start()

    def _serve(self) -> None:
        """Exchange messages, in a thread, until every rank is done or lost."""
        while len(self._done) < self._world_size:
            for key, _ in self._selector.select(0.2):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            if self._unexplained is not None and time.monotonic() > self._unexplained[0]:
                self._end(self._unexplained[1])
        self.is_empty.set()
        self._listener.close()

    def _accept(self) -> None:
        # Any host can connect. The selector reads when there is data, so that a peer that sends
        # nothing does not block the ranks.
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(30)
            self._selector.register(connection, selectors.EVENT_READ, MessageSocket(connection))

    def _read(self, peer: MessageSocket) -> None:
        messages = peer.receive()
        if messages and peer.rank is None:
            # The first message must be the secret; others may have arrived behind it.
            messages = messages[1:] if self._authenticate(peer, messages[0]) else None
        if messages is None:
            self._selector.unregister(peer.socket)
            peer.socket.close()
            if peer.rank is not None and peer.rank not in self._done:
                self._done.add(peer.rank)
                self._end(_lost(peer.rank))
            return
        for message in messages:
            kind = message.pop("kind", "")
            if kind == "done" and peer.rank is not None:
                self._done.add(peer.rank)
            elif kind == "stop":
                self._broadcast("stop", number=int(message["number"]))
            elif kind == "failed":
                self._consider(Failure(**message))

    def _authenticate(self, peer: MessageSocket, hello: dict[str, Any]) -> bool:
        """Register a rank by its first message; return False without the run's secret."""
        sent = str(hello.get("secret")).encode(errors="replace")
        if not hmac.compare_digest(sent, self.secret.encode()):
            return False
        peer.rank = int(hello["rank"])
        self._peers[peer.rank] = peer
        if self._ending is not None:
            peer.send("end", **self._ending.as_dict())
        return True

    def _consider(self, failure: Failure) -> None:
        """End the run for a failure; if it may be a consequence, wait for its cause first.

        Ranks that lose a connection to a failed one often report that before the failed one has
        reported its own error.
        """
        if not failure.is_consequence:
            self._end(failure)
        elif self._unexplained is None:
            self._unexplained = (time.monotonic() + _CONSEQUENCE_SECONDS, failure)

    def _end(self, failure: Failure) -> None:
        """End all ranks for the first failure; later ones are not forwarded."""
        if self._ending is None:
            self._ending = failure
            self._broadcast("end", **failure.as_dict())

    def _broadcast(self, kind: str, **fields: Any) -> None:
        for peer in self._peers.values():
            peer.send(kind, **fields)


class Watch:
    """A rank's side: report its error, and end its process when another one has failed.

    Args:
        rank: rank of this process.
        address, secret: those of the :class:`Hub`.
        hub: the hub, on rank 0.
        launcher: connection to the process that started this one; it forwards signals, and this
            process ends if it is lost.
    """

    def __init__(
        self,
        rank: int,
        address: tuple[str, int],
        secret: str,
        hub: Hub | None = None,
        launcher: Connection | None = None,
    ) -> None:
        self.rank = rank
        self.stop: StopSignals | None = None
        self._hub = hub
        self._launcher = launcher
        self._ending: Failure | None = None
        self._answered = threading.Event()
        self._is_reporting = False
        self._is_closed = False
        self._wakeup, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._hub_socket = MessageSocket(socket.create_connection(address, timeout=60))
        self._hub_socket.rank = 0
        self._hub_socket.socket.settimeout(None)
        self._hub_socket.send("hello", rank=rank, secret=secret)
        # torchrun's agent may be killed, and then its workers must end. Others, such as a shell
        # that started a process in the background, may exit before it.
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        threading.Thread(target=self._listen, name="watch", daemon=True).start()

    def follow(self, stop: StopSignals) -> None:
        """Make a signal to one rank stop all of them."""
        self.stop = stop
        stop.notify = self._announce

    def _announce(self, number: int) -> None:
        # Called from a signal handler, which may interrupt the main thread while it holds a lock.
        # So it only does a non-blocking write; the watch's thread sends the message.
        with contextlib.suppress(OSError):
            os.write(self._wake, bytes([number]))

    def report(self, error: BaseException) -> Failure:
        """Report an error to the hub; return the run's first one, which may be another rank's."""
        own = Failure.of(error, self.rank)
        self._is_reporting = True
        self._hub_socket.send("failed", **own.as_dict())
        self._answered.wait(_ANSWER_SECONDS)
        return self._ending or own

    def close(self) -> None:
        """Report that this rank is done; afterwards no other rank's failure ends it."""
        self._hub_socket.send("done")
        if self._hub is not None:
            # Wait for all: if the hub ended first, the others would report rank 0 as failed, and
            # their own failures could no longer end the run.
            self._hub.is_empty.wait()
        self._is_closed = True
        with contextlib.suppress(OSError):
            os.write(self._wake, b"\0")

    def _listen(self) -> None:
        """Wait, in a thread, for the hub, the launcher and this process's own signals."""
        selector = selectors.DefaultSelector()
        selector.register(self._hub_socket.socket, selectors.EVENT_READ, self._read_hub)
        selector.register(self._wakeup, selectors.EVENT_READ, self._read_own)
        if self._launcher is not None:
            selector.register(self._launcher, selectors.EVENT_READ, self._read_launcher)
        while not self._is_closed:
            for key, _ in selector.select(1.0):
                key.data()
            if self._parent is not None and os.getppid() != self._parent:
                self._end_without_launcher()

    def _read_own(self) -> None:
        for number in os.read(self._wakeup, 64):
            if number:
                self._hub_socket.send("stop", number=number)

    def _read_hub(self) -> None:
        messages = self._hub_socket.receive()
        if messages is None:
            if not self._is_closed:
                self._end(_lost(0), printer=1)
            return
        for message in messages:
            kind = message.pop("kind", "")
            if kind == "stop" and self.stop is not None:
                self.stop.request(int(message["number"]))
            elif kind == "end":
                failure = Failure(**message)
                self._end(failure, printer=0 if failure.is_lost else failure.rank)

    def _read_launcher(self) -> None:
        assert self._launcher is not None
        try:
            number = int(self._launcher.recv())
        except (EOFError, OSError):
            self._end_without_launcher()
            return
        if self.stop is not None:
            self.stop.request(number)
        else:
            end_process(128 + number)

    def _end_without_launcher(self) -> None:
        if not self._is_closed:
            logger.error("The process that started rank %d is gone: ending", self.rank)
            end_process(1)

    def _end(self, failure: Failure, printer: int) -> None:
        """End this process with the run's first failure, whatever its main thread does.

        Args:
            failure: the run's first failure.
            printer: rank that prints its error.
        """
        if self._ending is not None:
            return
        self._ending = failure
        self._answered.set()
        if self._is_reporting and failure.rank == self.rank:
            return  # the main thread prints its own error and ends the process
        if failure.text:
            logger.info("Ending, because rank %d failed: %s", failure.rank, failure.headline())
        if printer == self.rank:
            failure.show()
        self.leave(failure.code)

    def leave(self, code: int) -> None:
        """End this process; rank 0 waits a moment, so that the hub can inform the others."""
        if self._hub is not None:
            self._hub.is_empty.wait(2.0)
        end_process(code)


def end_process(code: int) -> None:
    """End this process and its children at once, without Python's cleanup.

    An orderly exit would wait for threads and process groups that in turn wait for lost ranks.
    """
    for child in multiprocessing.active_children():
        child.kill()
    for handler in [h for name in ("tokendetr", "detectron2") for h in _handlers(name)]:
        with contextlib.suppress(Exception):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _lost(rank: int) -> Failure:
    return Failure(rank, 128 + signal.SIGKILL, _LOST.format(rank=rank), is_lost=True)


def _handlers(name: str) -> list[logging.Handler]:
    return list(logging.getLogger(name).handlers)
