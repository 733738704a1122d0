# SPDX-License-Identifier: Apache-2.0
"""What stands in the host's namespace while the suite runs: facts, a canary, a hand.

    python3 canary.py facts                       print what a container must not learn
    python3 canary.py serve ADDRESS PORT SECRET   listen there and on loopback

As a canary it prints a JSON line for each line that somebody wrote to it ("heard") and
answers with the secret. Orders come on standard input, each is answered by one line:
    dial ADDRESS PORT    connect there and write the secret
    revoke COOKIE        take the socket with this cookie away from everybody
Only the standard library: it runs on hosts as they are.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KMOD_CONTROL = Path("/proc/slim_kmod/control")
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
#: struct inet_diag_msg up to the end of its socket id: 4 bytes, then 48.
ID_AT, ID_SIZE, COOKIE_AT = 4, 48, 40


def fact(kind: str, text: str, raw: bytes = b"") -> str:
    """One fact as the program's --fact takes it."""
    return f"{kind}={text}={raw.hex()}" if raw else f"{kind}={text}"


def hardware(name: str) -> bytes:
    """Hardware address of an interface; empty if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, 0x8927, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return b""
    return answer[18:24]


def addresses() -> list[str]:
    """IPv4 addresses of this namespace, loopback aside."""
    done = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True)
    found = [line.split()[3].partition("/")[0] for line in done.stdout.splitlines()]
    return [text for text in found if not text.startswith("127.")]


def fastopen_key() -> bytes:
    """The key under which this host makes TFO cookies; empty if it has none yet."""
    try:
        text = Path("/proc/sys/net/ipv4/tcp_fastopen_key").read_text().split(",")[0].strip()
    except OSError:
        return b""
    # Printed as four little-endian words (net/ipv4/sysctl_net_ipv4.c).
    raw = b"".join(struct.pack("<I", int(word, 16)) for word in text.split("-"))
    return raw if any(raw) else b""


def facts() -> dict[str, list[str]]:
    """What this namespace has; the runner takes off what the container has as well."""
    found: dict[str, list[str]] = {
        kind: [] for kind in ("address", "interface", "device", "mac", "netns", "secret")
    }
    found["address"] = [fact("address", text, socket.inet_aton(text)) for text in addresses()]
    for _unused, name in socket.if_nameindex():
        if name == "lo":
            continue
        found["interface"].append(fact("interface", name))
        found["device"].append(fact("device", name))
        raw = hardware(name)
        if any(raw):
            found["mac"].append(fact("mac", ":".join(f"{byte:02x}" for byte in raw), raw))
    found["netns"].append(fact("netns", str(Path("/proc/self/ns/net").stat().st_ino)))
    key = fastopen_key()
    if key:
        found["secret"].append(fact("secret", "tfo-key", key))
    return found


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    sock.bind((0, 0))
    sock.settimeout(2)
    return sock


def _request(kind: int, flags: int, family: int, ident: bytes) -> bytes:
    body = struct.pack("<BBBxI", family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + ident
    return struct.pack("<IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        size, kind = struct.unpack_from("<IH", data)
        if size < 16:
            return
        yield kind, data[16:size]
        data = data[(size + 3) & ~3 :]


def destroy(cookie: int) -> str:
    """SOCK_DESTROY the TCP socket of this namespace that has the cookie; "ok" or why not."""
    wanted = struct.pack("<Q", cookie)
    for family in (socket.AF_INET, socket.AF_INET6):
        found = None
        with _netlink() as sock:
            sock.send(
                _request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, bytes(ID_SIZE))
            )
            done = False
            while not done:
                for kind, body in _messages(sock.recv(1 << 16)):
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        done = True
                    elif body[ID_AT + COOKIE_AT : ID_AT + ID_SIZE] == wanted:
                        found = body[ID_AT : ID_AT + ID_SIZE]
        if found is None:
            continue
        with _netlink() as sock:
            sock.send(_request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, found))
            for kind, body in _messages(sock.recv(1 << 16)):
                if kind == NLMSG_ERROR:
                    error = -struct.unpack_from("<i", body)[0]
                    return "ok" if error == 0 else f"no: SOCK_DESTROY: {os.strerror(error)}"
    return "no: no socket with that cookie in the host's namespace"


def revoke(cookie: int, command: str) -> str:
    """Revoke as this host can: a command of the caller's, the module, else SOCK_DESTROY."""
    if command:
        words = [word.replace("COOKIE", str(cookie)) for word in shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
        return "ok" if done.returncode == 0 else f"no: {done.stderr.strip()}"
    if KMOD_CONTROL.exists():
        record = struct.pack("<HBBiQQQ", 0x4B53, 1, 2, -1, cookie, 0, 0)
        try:
            with KMOD_CONTROL.open("wb", buffering=0) as control:
                control.write(record)
        except OSError as error:
            return f"no: {error.strerror}"
        return "ok"
    return destroy(cookie)


def dial(address: str, port: int, secret: str) -> str:
    """Connect as an honest program of the host would, and say the secret."""
    try:
        with socket.create_connection((address, port), 2) as sock:
            sock.sendall(f"{secret}\n".encode())
    except OSError as error:
        return f"no: {error.strerror or error}"
    return "ok"


def say(**words: str) -> None:
    """One JSON line for the runner."""
    print(json.dumps(words), flush=True)


class Canary:
    """The loop: listeners, whoever came, and standard input."""

    def __init__(self, address: str, port: int, secret: str, command: str) -> None:
        self.secret = secret
        self.command = command
        self.chosen = selectors.DefaultSelector()
        self.lines: dict[socket.socket, bytes] = {}
        first = self._listen(socket.AF_INET, address, port)
        port = first.getsockname()[1]
        self._listen(socket.AF_INET, "127.0.0.1", port)
        try:
            self._listen(socket.AF_INET6, "::1", port)
        except OSError:
            pass  # a host without IPv6
        self.orders = b""
        self.chosen.register(0, selectors.EVENT_READ, "orders")
        say(ready=str(port))

    def _listen(self, family: int, address: str, port: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        # As a service that takes TFO would: the host makes its key for cookies.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        sock.listen(64)
        sock.setblocking(False)
        self.chosen.register(sock, selectors.EVENT_READ, "listener")
        return sock

    def _drop(self, sock: socket.socket) -> None:
        self.chosen.unregister(sock)
        self.lines.pop(sock, None)
        sock.close()

    def _heard(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._drop(sock)
            return
        self.lines[sock] += data
        if b"\n" in self.lines[sock] or len(self.lines[sock]) > 4096:
            text = self.lines[sock].split(b"\n")[0].decode(errors="replace")
            say(heard=text)
            try:
                sock.send(f"{self.secret}\n".encode())
            except OSError:
                pass
            self._drop(sock)

    def _order(self, line: str) -> None:
        words = line.split()
        if len(words) == 3 and words[0] == "dial":
            say(answer=dial(words[1], int(words[2]), self.secret))
        elif len(words) == 2 and words[0] == "revoke":
            say(answer=revoke(int(words[1]), self.command))
        else:
            say(answer=f"no: what is {line!r}?")

    def serve(self) -> None:
        """Until standard input ends."""
        while True:
            for key, _unused in self.chosen.select():
                if key.data == "orders":
                    data = os.read(0, 4096)
                    if not data:
                        return
                    self.orders += data
                    while b"\n" in self.orders:
                        line, _unused, self.orders = self.orders.partition(b"\n")
                        self._order(line.decode())
                elif key.data == "listener":
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        sock, _unused = key.fileobj.accept()
                    except OSError:
                        continue
                    sock.setblocking(False)
                    self.lines[sock] = b""
                    self.chosen.register(sock, selectors.EVENT_READ, "guest")
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._heard(key.fileobj)


def main() -> int:
    """Entry point; returns the exit status."""
    if sys.argv[1:] == ["facts"]:
        print(json.dumps(facts()))
        return 0
    if len(sys.argv) in (5, 6) and sys.argv[1] == "serve":
        command = sys.argv[5] if len(sys.argv) == 6 else ""
        Canary(sys.argv[2], int(sys.argv[3]), sys.argv[4], command).serve()
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
