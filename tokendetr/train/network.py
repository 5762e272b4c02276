"""Which of a machine's addresses the processes of a run listen at and talk through."""

import ipaddress
import os
import socket
import struct

__all__ = ["LOOPBACK", "free_port", "is_loopback", "listener", "use_interface_towards"]

LOOPBACK = "127.0.0.1"
_ANYWHERE = "192.0.2.1"
"""An address that exists nowhere (RFC 5737): the way to it is the default route."""
_SIOCGIFADDR = 0x8915


def is_loopback(host: str) -> bool:
    """Whether a host is written as this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listener(host: str, port: int = 0) -> socket.socket:
    """A listening socket at the address of a host alone; at every address where the host is a name
    that only others can use.

    On many machines their own name means loopback (127.0.1.1), where nobody else finds them.

    Raises:
        OSError: the port is in use.
    """
    if not is_loopback(host) and is_loopback(_resolved(host)):
        return socket.create_server(("", port))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def use_interface_towards(host: str) -> None:
    """Let gloo, and on loopback nccl, use the interface through which a host is reached.

    By itself gloo takes the one that this machine's name means, which is loopback on many. What is
    set in the environment stays. Nothing is set where the system does not say (not Linux, IPv6).
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
    """A port of loopback that nothing listens at now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _resolved(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _own_address(target: str) -> str:
    """This machine's address on the way to another; nothing is sent."""
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
            except OSError:  # it has no address of IPv4
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
