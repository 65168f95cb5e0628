"""Machines for tests, as Linux namespaces of this one: addresses, processes and folders of their own, on one switch.

Nothing of it has a name outside: switch, links and addresses are in network namespaces that go with their last process,
and the first process of each machine ends when the test does, however that ends. So nothing is ever left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from local_cluster import wait_for
from real_disks import LEAVE_DISKS

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"
"""Start of all addresses; every switch has a network of its own, so several may use the same."""
HOME = Path("/tmp/home")
"""Home and working folder on every machine, in memory and gone with it."""
PROGRAMS = ("unshare", "nsenter", "ip", "mount")
OWN_FOLDERS = ("/run", "/var/tmp", "/dev/shm", "/tmp")
SETUP = f"""
set -e
exec 3<&0
name=$1; shift
hostname "$name"
{LEAVE_DISKS}
mount -o remount,bind,ro /
# this checkout and Python may lie in a folder that is about to be hidden
mount -t tmpfs -o size=1g none /run
for kept; do mkdir -p "/run/kept$kept"; mount --rbind -o ro "$kept" "/run/kept$kept"; done
for own in {" ".join(OWN_FOLDERS[1:])}; do mount -t tmpfs -o mode=1777 none $own; done
for kept; do
    [ -d "$kept" ] || mkdir -p "$kept"
    mount --move "/run/kept$kept" "$kept"
done
# as Debian and Ubuntu write it: the name of a machine leads to nowhere else
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$name" > /run/hosts
mount --bind /run/hosts /etc/hosts
# nobody knows other names, and says so at once
: > /run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
mkdir {HOME}
ip link set lo up
touch /run/ready
# the first process lives as long as the test keeps our input open, and reaps what others leave
(trap '' TERM; exec cat <&3 > /dev/null) & wait $!
"""
DELAY = """
import collections, fcntl, os, select, struct, sys, time

def tap(name):
    # a device whose packets are this program's to pass on, whole and with their checksums
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    ethernet_alone = 0x0002 | 0x1000
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name, ethernet_alone))
    return device

delay_s = float(sys.argv[1])
near, far = tap(b"near"), tap(b"far")
other = {near: far, far: near}
waiting = collections.deque()
print("ready", flush=True)
while True:
    left_s = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    for device in select.select([near, far], [], [], left_s)[0]:
        waiting.append((time.monotonic() + delay_s, other[device], os.read(device, 65536)))
    while waiting and waiting[0][0] <= time.monotonic():
        _, device, packet = waiting.popleft()
        os.write(device, packet)
"""
"""Passes packets between two network devices, each so many seconds late."""


class Host:
    """A machine, until it is killed."""

    def __init__(self, name: str, number: int, switch: subprocess.Popen[bytes]) -> None:
        """Start it and plug it in; no other has had its number, whose link may be there a while after its end."""
        self.name, self._switch = name, switch
        self.address, self._port = f"{NETWORK}.{number}", f"port{number}"
        prefixes = {str(Path(each).resolve()) for each in (ROOT, sys.prefix, sys.base_prefix)}
        hidden = sorted(each for each in prefixes if each.startswith(OWN_FOLDERS))
        # what lies in another of them comes with that
        hidden = [
            each for each in hidden if not prefixes & {str(above) for above in Path(each).parents}
        ]
        # what is mounted there is seen by nobody else: that is usual for `unshare`
        options = "--net --mount --uts --ipc --pid --mount-proc --fork --kill-child"
        self._first = subprocess.Popen(
            ["unshare", *options.split(), "sh", "-c", SETUP, "sh", name, *hidden],
            stdin=subprocess.PIPE,
        )
        wait_for(
            lambda: self.run(["test", "-e", "/run/ready"]).returncode == 0,
            what=f"machine {name}",
            driver=self._first,
        )
        link = f"link add {self._port} netns {switch.pid} type veth peer name eth0 netns {self._first.pid}"
        _ip(*link.split())
        self.plug_into("switch")
        _ip("address", "add", f"{self.address}/24", "dev", "eth0", of=self._first)
        _ip("link", "set", "eth0", "up", of=self._first)
        _ip("route", "add", "default", "via", f"{NETWORK}.254", of=self._first)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of all its programs: nothing of the test's own but `PATH` and the like."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(HOME),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program there, in its home; what it prints goes into a file of the test, or nowhere."""
        with (log or Path(os.devnull)).open("ab") as output:
            return subprocess.Popen(
                self._inside(command),
                env=self.environment | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout: float = 300,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end."""
        return subprocess.run(
            self._inside(command),
            env=self.environment | dict(environment or {}),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def write(self, name: str, content: str) -> None:
        """Write a file in its home."""
        self.run(["sh", "-c", f'mkdir -p "$(dirname {name})" && cat > {name}'], input=content)

    def reaches(self, other: Host, port: int) -> bool:
        """Whether somebody listens there."""
        script = f"import socket; socket.create_connection(('{other.address}', {port}), 2)"
        return self.run(["python", "-S", "-c", script]).returncode == 0

    def plug_into(self, switch: str) -> None:
        """Put its cable into a switch."""
        _ip("link", "set", self._port, "master", switch, "up", of=self._switch)

    def cut(self) -> None:
        """Pull its cable."""
        _ip("link", "set", self._port, "down", of=self._switch)

    def mend(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self._port, "up", of=self._switch)

    @contextlib.contextmanager
    def cut_off(self, seconds: float) -> Iterator[None]:
        """Without its cable while the block runs and for so long at least."""
        until = time.monotonic() + seconds
        self.cut()
        try:
            yield
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            self.mend()

    def shut_down(self, seconds: float = 5.0) -> None:
        """Ask all its processes to end, and take its power so many seconds later, as clouds do with spot machines."""
        self.run(["sh", "-c", "trap '' TERM; kill -TERM -1"])
        time.sleep(seconds)
        self.kill()

    def kill(self) -> None:
        """Cut its power: all its processes end at once, without notice."""
        self._first.kill()
        self._first.communicate()

    def _inside(self, command: Sequence[str]) -> list[str]:
        first = self._first.pid
        # the process that we started is outside of the machine's processes, but its children are inside
        places = ["--pid", f"/proc/{first}/ns/pid_for_children"]
        enter = f"nsenter --target {first} --net --mount --uts --ipc".split()
        return [*enter, f"{places[0]}={places[1]}", "env", "-C", str(HOME), *command]


class Hosts:
    """Machines on one switch, by their names."""

    def __init__(self) -> None:
        """Make the switch; machines are added later."""
        command = ["unshare", "--net", "--fork", "--kill-child", "cat"]
        self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._hosts: dict[str, Host] = {}
        self._numbers = iter(range(1, 254))
        ours, its = (Path(f"/proc/{each}/ns/net") for each in ("self", self._switch.pid))
        wait_for(lambda: its.readlink() != ours.readlink(), what="the switch")
        _ip("link", "add", "switch", "type", "bridge", of=self._switch)
        _ip("address", "add", f"{NETWORK}.254/24", "dev", "switch", of=self._switch)
        _ip("link", "set", "switch", "up", of=self._switch)

    def add(self, name: str) -> Host:
        """One more machine; one that was killed comes back as a new one, with another address."""
        host = Host(name, next(self._numbers), self._switch)
        self._hosts[name] = host
        return host

    @contextlib.contextmanager
    def losing(self, percent: int) -> Iterator[None]:
        """Lose so many of all packets while the block runs; the test is skipped where nftables is missing."""
        if shutil.which("nft") is None:
            pytest.skip("no nft on this machine (apt-get install nftables)")
        drop = f"numgen random mod 100 < {percent} drop"
        rules = f"table bridge faults {{ chain loss {{ type filter hook forward priority 0; {drop}; }}; }}"
        inside = ["nsenter", "--target", str(self._switch.pid), "--net", "nft"]
        subprocess.run([*inside, rules.replace("table", "add table", 1)], check=True)
        try:
            yield
        finally:
            subprocess.run([*inside, "delete table bridge faults"], check=True)

    @contextlib.contextmanager
    def far_away(self, *hosts: Host, seconds: float) -> Iterator[None]:
        """While the block runs, each packet between these machines and the others takes so long."""
        inside = ["nsenter", "--target", str(self._switch.pid), "--net", sys.executable, "-S"]
        delay = subprocess.Popen([*inside, "-c", DELAY, str(seconds)], stdout=subprocess.PIPE)
        try:
            assert delay.stdout is not None
            assert delay.stdout.readline() == b"ready\n"
            _ip("link", "add", "distant", "type", "bridge", of=self._switch)
            for device, switch in (("near", "switch"), ("far", "distant")):
                _ip("link", "set", device, "master", switch, of=self._switch)
            for device in ("near", "far", "distant"):
                _ip("link", "set", device, "up", of=self._switch)
            for host in hosts:
                host.plug_into("distant")
            yield
        finally:
            for host in hosts:
                host.plug_into("switch")
            _ip("link", "delete", "distant", of=self._switch)
            delay.kill()
            delay.communicate()

    def close(self) -> None:
        """End all of them."""
        for host in self._hosts.values():
            host.kill()
        self._switch.kill()
        self._switch.communicate()


@contextlib.contextmanager
def hosts() -> Iterator[Hosts]:
    """Machines that end with the block; the test is skipped where this user may not make any."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this machine (apt-get install iproute2)")
    try_out = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "ip",
        "link",
        "add",
        "type",
        "bridge",
    ]
    if subprocess.run(try_out, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make namespaces and network links (root may)")
    found = Hosts()
    try:
        yield found
    finally:
        found.close()


def _ip(*arguments: str, of: subprocess.Popen[bytes] | None = None) -> None:
    """Run `ip`, in the network of a process."""
    enter = [] if of is None else ["nsenter", "--target", str(of.pid), "--net"]
    subprocess.run([*enter, "ip", *arguments], check=True, capture_output=True)
