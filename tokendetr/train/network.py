"""Choose the addresses and interfaces through which the processes of a run communicate."""

import errno
import ipaddress
import os
import random
import socket
import struct
from pathlib import Path

__all__ = ["LOOPBACK", "free_port", "is_loopback", "listener", "use_interface_towards"]

LOOPBACK = "127.0.0.1"
_ANYWHERE = "192.0.2.1"
"""An address that is never assigned (RFC 5737), so that its route is the default route."""
_SIOCGIFADDR = 0x8915
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 20_000
_PORTS_TRIED = 20


def is_loopback(host: str) -> bool:
    """Return whether a host is ``localhost`` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listener(host: str, port: int = 0) -> socket.socket:
    """Return a socket that listens at the address of a host only.

    If the host is a name that resolves to loopback (many machines map their own name to 127.0.1.1),
    other machines could not connect, and the socket listens at every address.

    Raises:
        OSError: the port is in use.
    """
    if not is_loopback(host) and is_loopback(_resolved(host)):
        return socket.create_server(("", port))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def use_interface_towards(host: str) -> None:
    """Make gloo, and for loopback also nccl, use the interface through which a host is reached.

    By default gloo uses the interface that this machine's name resolves to, which is loopback on
    many machines. Variables that are set in the environment are kept. Nothing is set if the
    interface cannot be determined (IPv6, or systems other than Linux).
    """
    target = _resolved(host)
    if is_loopback(target) and not is_loopback(host):
        target = _ANYWHERE
    name = _interface_of(_own_address(target))
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if is_loopback(host):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def free_port() -> int:
    """Return a port of loopback that is free, and that nobody is likely to take soon.

    A process binds it seconds later. Until then, a port of the ephemeral range may become that of
    any connection of this machine; one below the range is only taken by who names it.
    """
    below = range(_LOWEST_PORT, _first_ephemeral_port())
    candidates = random.SystemRandom().sample(below, min(_PORTS_TRIED, len(below)))
    for port in (*candidates, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, f"{LOOPBACK} has no free port")


def _first_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL_PORTS.read_text().split()[0])
    except (OSError, ValueError):
        return _LOWEST_PORT


def _resolved(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _own_address(target: str) -> str:
    """Return this machine's address on the route to another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _interface_of(address: str) -> str:
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError, AttributeError):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            try:
                answer = fcntl.ioctl(
                    probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15])
                )
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
