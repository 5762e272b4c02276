"""The connections between the ranks of a run withstand unknown peers and early messages."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience, wait_until
from tokendetr.train.failures import Failure
from tokendetr.train.watch import Hub, Watch


def connect(hub, content=b""):
    line = socket.create_connection(hub.address)
    line.sendall(content)
    return line


def said(hub, rank, *messages):
    hello = {"kind": "hello", "rank": rank, "secret": hub.secret}
    return "".join(json.dumps(message) + "\n" for message in (hello, *messages)).encode()


ROOT = Path(__file__).resolve().parents[2]
STRANGERS = {
    "silent": b"",
    "half a line": b'{"kind": "hello", ',
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "binary": bytes(range(256)),
    "nested": b"[" * 100_000 + b"\n",
    "other values": b'5\n[1]\n"x"\nnull\n',
    "no secret": b'{"kind": "failed", "rank": 1, "code": 3, "text": "mine"}\n',
    "a wrong secret": json.dumps({"secret": "\u00e9" * 32, "rank": 1}).encode() + b"\n",
    "endless": b"x" * 100_000,
}


def test_unauthenticated_peers_do_not_block_the_ranks():
    hub = Hub("127.0.0.1", 2)
    lines = []
    for content in STRANGERS.values():
        lines.append(connect(hub))
        try:
            lines[-1].sendall(content)
        except OSError:  # the hub has hung up already
            continue
    one, two = (Watch(rank, hub.address, hub.secret) for rank in (0, 1))
    two._hub_socket.send("done")
    one._hub_socket.send("done")
    assert hub.is_empty.wait(patience(10))
    for line in (*lines, one._hub_socket.socket, two._hub_socket.socket):
        line.close()


def test_messages_that_arrive_with_the_secret_are_read():
    hub = Hub("127.0.0.1", 2)
    failed = Failure(1, 9, "error: at once")
    messages = {"kind": "failed", **failed.as_dict()}
    lines = [connect(hub, said(hub, 0)), connect(hub, said(hub, 1, messages))]
    lines[0].settimeout(patience(10))
    heard = json.loads(lines[0].makefile().readline())
    assert (heard["kind"], heard["code"], heard["text"]) == ("end", 9, "error: at once")
    for line in lines:
        line.close()
    wait_until(hub.is_empty.is_set, 5, "the end of the hub")


@pytest.mark.parametrize("code", [None, 0, 256, False])
def test_a_rank_that_leaves_early_does_not_count_as_success(code):
    failure = Failure.of(SystemExit(code), 1)
    assert failure.code == 1 and "rank 1 left the run" in failure.text


PROGRAM = """
import importlib, multiprocessing, os, signal, sys
from tests.train import failing

if __name__ == "__main__":
    launch = importlib.import_module("tokendetr.train.launch")
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    args = failing.arguments(sys.argv[1], "exit")
    url = f"tcp://127.0.0.1:{launch.free_port()}"
    arguments = (0, other, failing.fail, args, url, "cpu", launch.Timeouts())
    context.Process(target=launch._child, args=arguments).start()
    os.kill(os.getpid(), signal.SIGKILL)  # the second process is never started
"""


def test_a_rank_that_waits_for_others_ends_with_its_launcher(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    # Reads to the end of the output, which both processes have.
    done = subprocess.run(
        [sys.executable, str(file), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    assert "is gone: ending" in done.stderr, done.stderr
