"""The address at which processes of a run listen, and the interface between them."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tests.patience import patience
from tests.source_tree import ROOT
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.errors import RendezvousError
from tokendetr.train import network
from tokendetr.train.process_group import Environment, process_group

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture
def no_choice(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.1.1"])
def test_loopback_is_known_by_name_and_number(host):
    assert network.is_loopback(host)
    if host != "::1":
        with network.listener(host) as listening:
            assert listening.getsockname()[0].startswith("127.")


def test_a_name_that_means_loopback_here_alone_is_listened_for_everywhere(monkeypatch):
    """Debian gives a machine's own name the address 127.0.1.1."""
    monkeypatch.setattr(network, "_resolved", lambda host: "127.0.1.1")
    with network.listener("node1") as listening:
        assert not any(map(int, listening.getsockname()[0].split(".")))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="interfaces are Linux's")
def test_a_free_port_is_none_that_a_connection_may_get(monkeypatch, tmp_path):
    range_file = tmp_path / "ports"
    monkeypatch.setattr(network, "_EPHEMERAL_PORTS", range_file)
    range_file.write_text("20002\t60999\n")
    assert {network.free_port() for _ in range(20)} <= {20_000, 20_001}
    with network.listener("127.0.0.1", network.free_port()) as taken:
        assert network.free_port() != taken.getsockname()[1]
    range_file.write_text("1024 65535\n")  # nothing is below: any free port
    assert network.free_port() > 0


def test_the_interface_is_that_towards_the_meeting_point(monkeypatch, no_choice):
    network.use_interface_towards("127.0.0.1")
    assert [os.environ[name] for name in NAMES] == ["lo", "lo"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    network.use_interface_towards("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_an_own_name_of_loopback_is_not_taken_for_the_way_to_others(monkeypatch, no_choice):
    asked = []
    monkeypatch.setattr(network, "_resolved", lambda host: "127.0.1.1")
    monkeypatch.setattr(network, "_own_address", lambda target: asked.append(target) or "10.0.0.5")
    monkeypatch.setattr(network, "_interface_of", {"10.0.0.5": "eth0"}.__getitem__)
    network.use_interface_towards("node1")
    assert not network.is_loopback(asked[0])
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0" and NAMES[1] not in os.environ


def test_processes_that_cannot_reach_each_other_are_told_how(monkeypatch, no_choice, tmp_path):
    def fail(*args, **options):
        raise RuntimeError("Gloo connectFullMesh failed: Connection refused, remote=[127.0.0.1]")

    monkeypatch.setattr(dist, "init_process_group", fail)
    environment = Environment(0, 1, 0, 1, f"file://{tmp_path}/meeting")
    with (
        pytest.raises(RendezvousError, match=r"Connection refused.*GLOO_SOCKET_IFNAME"),
        process_group("gloo", environment),
    ):
        pytest.fail("there is no group")


def run(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def two_machines():
    """Make two network namespaces joined by a virtual cable, 10.77.0.1 and 10.77.0.2."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"tokendetr{os.getpid()}{end}" for end in "ab"]
    try:
        made = all(run("ip", "netns", "add", name) for name in names)
        made = made and run(
            *("ip", "link", "add", "eth7", "netns", names[0]),
            *("type", "veth", "peer", "name", "eth7", "netns", names[1]),
        )
        if not made:
            pytest.skip("this system gives no network namespaces")
        for number, name in enumerate(names, start=1):
            inside = ("ip", "-n", name)
            assert run(*inside, "addr", "add", f"10.77.0.{number}/24", "dev", "eth7")
            assert run(*inside, "link", "set", "eth7", "up")
            assert run(*inside, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            run("ip", "netns", "del", name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["machines", "torchrun"])
def test_two_machines_train_together(two_machines, toy_root, tmp_path, how):
    """The name of the machine resolves to loopback in both, as on many machines."""
    out = tmp_path / "out"
    base = {**os.environ, "TOY_ROOT": str(toy_root), "TOY_OUTPUT": str(out)}
    base |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    program = ["tools/train_net.py", "--config-file", "tests/train/toy_config.py"]
    options = ["train.max_iter=4", "train.eval_period=0", f"train.output_dir={out}"]
    processes = []
    for rank, name in enumerate(two_machines):
        command = [*program, "--num-machines", "2", "--machine-rank", str(rank)]
        command += ["--dist-url", "tcp://10.77.0.1:29511"]
        if how == "torchrun":
            command = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
            command += ["--node-rank", str(rank), "--master-addr", "10.77.0.1"]
            command += ["--master-port", "29511", *program]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, *command, *options],
                cwd=ROOT,
                env=base,
            )
        )
    assert [process.wait(patience(60)) for process in processes] == [0, 0]
    assert (out / "log.txt.rank1").is_file()
    weights = read_checkpoint(str(out / "model_final.pth"))["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())
