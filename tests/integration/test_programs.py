# SPDX-License-Identifier: Apache-2.0
"""Real, unmodified programs, each with its own clients under load.

    node1              node2
    c1  clients  --->  c2  the server under test
    c3  haproxy        c4  more clients

That the bytes took the host path is proved by the counters of the server's worker: how
many connections it delivered warm or cold, and how many over the overlay.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import NODES, PYTHON, Words, need, read_until

SERVER = "c2"
CLIENT = "c1"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def delivered(lab: Lab, endpoint: str) -> tuple[int, int]:
    """(host path, overlay) connections that an endpoint's worker has delivered."""
    for row in lab.slimctl(endpoint, "endpoints")["endpoints"]:
        if row["name"] == endpoint:
            counters = row["counters"]
            slim = counters.get("accepted_warm", 0) + counters.get("accepted_cold", 0)
            return slim, counters.get("accepted_overlay", 0)
    raise AssertionError(f"{endpoint} is not there")


def reasons(lab: Lab) -> Counter[str]:
    """Why connects took the overlay, and how many."""
    return Counter(
        {
            f"{row['name']}: {word}": count
            for node in NODES
            for row in lab.slimctl(node, "endpoints")["endpoints"]
            for word, count in row["counters"].items()
            if word.startswith("connect_overlay_")
        }
    )


def late(why: Counter[str]) -> int:
    """Connects that took the overlay because somebody had no CPU in time."""
    words = ("connect_overlay_not_ready_in_time", "connect_overlay_no_router")
    return sum(count for word, count in why.items() if word.endswith(words))


@contextlib.contextmanager
def host_path(lab: Lab, endpoint: str = SERVER, share: float = 0.9) -> Iterator[None]:
    """At least `share` of the connections made inside the block took the host path. Of a busy
    machine's late ones half are let off: a connect waits 20 ms for its router, no longer."""
    slim, overlay = delivered(lab, endpoint)
    before = reasons(lab)
    yield
    after = delivered(lab, endpoint)
    slim, overlay = after[0] - slim, after[1] - overlay
    why = reasons(lab) - before
    tardy = late(why)
    said = f"{slim} host path, {overlay} overlay, {tardy} of them late: {dict(why)}"
    assert slim > 0 and slim >= overlay, said
    assert slim + tardy >= share * (slim + overlay), said


def serve(
    lab: Lab,
    words: Sequence[str | os.PathLike[str]],
    port: int,
    endpoint: str = SERVER,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a server and wait until its worker has its listener.

    A worker that had no CPU for a second is asked again when a connection comes.
    """
    process = lab.popen(endpoint, words, **options)
    since = time.monotonic()

    def up() -> bool:
        assert process.poll() is None, f"{words[0]} ended with {process.returncode}"
        if not lab.listens(endpoint, port):
            return False
        rows = lab.slimctl(endpoint, "endpoints")["endpoints"]
        ours = next(row["listeners"] for row in rows if row["name"] == endpoint)
        if any(listener["port"] == port for listener in ours):
            return True
        if time.monotonic() > since + 5:
            lab.run(endpoint, [PYTHON, "-c", CONNECT, lab.ip(endpoint), str(port)], "overlay")
        return False

    wait_for(up, 30, f"{words[0]} listens on {port}")
    return process


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that servers which give up root can use."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            with contextlib.suppress(OSError):
                path.chmod(path.stat().st_mode | 0o055)
    return tmp_path


def test_redis(slim_lab: Lab, place: Path) -> None:
    need("redis-server", "redis-benchmark", "redis-cli")
    ip = slim_lab.ip(SERVER)
    words: Words = ["redis-server", "--bind", ip, "--port", "7400", "--save", "", "--dir", place]
    words += ["--protected-mode", "no", "--io-threads", "2"]
    serve(slim_lab, words, 7400, stdout=subprocess.DEVNULL)
    with host_path(slim_lab):
        cli = ["redis-cli", "-h", ip, "-p", "7400"]
        assert slim_lab.run(CLIENT, [*cli, "set", "a", "words"]).stdout == "OK\n"
        assert slim_lab.run(CLIENT, [*cli, "get", "a"]).stdout == "words\n"
        bench = ["redis-benchmark", "-h", ip, "-p", "7400", "-n", "20000", "-c", "50", "--csv"]
        said = slim_lab.run(CLIENT, [*bench, "-t", "ping,set,get"]).stdout
        assert said.count('"') > 10, said
        said = slim_lab.run(CLIENT, [*bench, "-t", "get", "-k", "0", "-n", "2000"]).stdout
        assert "GET" in said
        info = slim_lab.run(CLIENT, [*cli, "client", "list"]).stdout
        assert f"addr={slim_lab.ip(CLIENT)}:" in info, info
        assert f"laddr={ip}:7400" in info, info


def test_memcached(slim_lab: Lab) -> None:
    need("memcached")
    ip = slim_lab.ip(SERVER)
    words: Words = ["memcached", "-u", "root", "-l", ip, "-p", "7401", "-U", "0", "-t", "4"]
    serve(slim_lab, words, 7401)
    client = textwrap.dedent(
        """
        import socket, sys, threading
        bad = []
        def one(n):
            try:
                for turn in range(5):
                    s = socket.create_connection((sys.argv[1], 7401), 8)
                    f = s.makefile("rwb")
                    for k in range(50):
                        value = f"{n}.{turn}.{k}".encode() * 20
                        f.write(b"set k%d.%d 0 0 %d\\r\\n%s\\r\\n" % (n, k, len(value), value))
                        f.flush()
                        assert f.readline() == b"STORED\\r\\n"
                        f.write(b"get k%d.%d\\r\\n" % (n, k)); f.flush()
                        f.readline(); assert f.readline() == value + b"\\r\\n"
                        assert f.readline() == b"END\\r\\n"
                    s.close()
            except Exception as error:
                bad.append(repr(error))
        one(24)  # (how many of 24 cold connects at once are in time is the machine's affair)
        threads = [threading.Thread(target=one, args=(n,)) for n in range(24)]
        for t in threads: t.start()
        for t in threads: t.join()
        print("bad", bad)
        """
    )
    with host_path(slim_lab):
        said = slim_lab.run(CLIENT, [PYTHON, "-c", client, ip]).stdout
        assert said == "bad []\n", said


def nginx_config(place: Path, ip: str, port: int, workers: int) -> Path:
    root = place / "www"
    root.mkdir(exist_ok=True)
    (root / "index.html").write_text("slim" * 256)
    path = place / "nginx.conf"
    path.write_text(
        f"""
        daemon off; user root; worker_processes {workers}; pid {place}/nginx.pid;
        error_log {place}/error.log warn;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; keepalive_requests 100000;
            client_body_temp_path {place}/t1; proxy_temp_path {place}/t2;
            fastcgi_temp_path {place}/t3; uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
            server {{ listen {ip}:{port} backlog=1024; root {root};
                      location /me {{ return 200 "$remote_addr $server_addr:$server_port"; }} }}
        }}
        """
    )
    return path


def wrk(lab: Lab, source: str, url: str, *words: str, seconds: int = 2) -> int:
    """Requests that wrk made; none may fail."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", *words, url]
    said = lab.run(source, command, timeout=60).stdout
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    match = re.search(r"(\d+) requests in", said)
    assert match, said
    assert int(match[1]) > 100, said
    return int(match[1])


@pytest.mark.parametrize("workers", [1, 4])
def test_nginx(slim_lab: Lab, place: Path, workers: int) -> None:
    need("nginx", "wrk", "curl")
    ip = slim_lab.ip(SERVER)
    server = serve(
        slim_lab, ["nginx", "-c", nginx_config(place, ip, 7402, workers), "-p", place], 7402
    )
    with host_path(slim_lab):
        said = slim_lab.run(CLIENT, ["curl", "-sS", f"http://{ip}:7402/me"]).stdout
        assert said == f"{slim_lab.ip(CLIENT)} {ip}:7402"
        wrk(slim_lab, CLIENT, f"http://{ip}:7402/")
        wrk(slim_lab, CLIENT, f"http://{ip}:7402/", "-H", "Connection: close")
    # A graceful reload: new workers take the listener over, requests go on.
    os.kill(server.pid, signal.SIGHUP)
    wrk(slim_lab, CLIENT, f"http://{ip}:7402/", "-H", "Connection: close", seconds=1)
    errors = (place / "error.log").read_text()
    assert not re.search(r"\[(crit|alert|emerg|error)\]", errors), errors


@pytest.fixture
def postgres(slim_lab: Lab, place: Path) -> Iterator[str]:
    """A PostgreSQL server in c2; its address."""
    need("pgbench", "setpriv")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or not (binaries[-1] / "postgres").exists():
        pytest.skip("the PostgreSQL server is not installed")
    data = place / "data"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    run_as = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    subprocess.run(
        [*run_as, binaries[-1] / "initdb", "-D", data, "-A", "trust", "-N", "-U", "postgres"],
        check=True,
        capture_output=True,
        timeout=60,
        cwd="/",
    )
    ip = slim_lab.ip(SERVER)
    (data / "pg_hba.conf").write_text("host all all 0.0.0.0/0 trust\n")
    words: Words = [
        *run_as,
        binaries[-1] / "postgres",
        "-D",
        data,
        "-h",
        ip,
        "-p",
        "7403",
        "-k",
        "",
    ]
    words += ["-F", "-c", "max_connections=64"]
    server = serve(slim_lab, words, 7403, cwd="/", stderr=subprocess.DEVNULL)
    yield ip
    server.send_signal(signal.SIGINT)
    server.wait(20)


def test_pgbench(slim_lab: Lab, postgres: str) -> None:
    base = ["pgbench", "-h", postgres, "-p", "7403", "-U", "postgres"]
    with host_path(slim_lab):
        slim_lab.run(CLIENT, [*base, "-i", "-s", "1", "-q", "postgres"], timeout=60)
        for words in (["-c", "8", "-j", "2"], ["-c", "4", "-C"]):
            said = slim_lab.run(CLIENT, [*base, *words, "-T", "2", "postgres"], timeout=60).stdout
            assert "number of failed transactions: 0 " in said, said
            match = re.search(r"transactions actually processed: (\d+)", said)
            assert match and int(match[1]) > 20, said


def test_haproxy_chrooted_and_reloaded_in_front_of_nginx(slim_lab: Lab, place: Path) -> None:
    need("haproxy", "nginx", "wrk", "curl")
    back, front = slim_lab.ip(SERVER), slim_lab.ip("c3")
    serve(slim_lab, ["nginx", "-c", nginx_config(place, back, 7404, 1), "-p", place], 7404)
    jail = place / "jail"
    jail.mkdir()
    config = place / "haproxy.cfg"
    config.write_text(
        textwrap.dedent(
            f"""
            global
                chroot {jail}
                user nobody
                group nogroup
                stats socket {place}/admin.sock mode 600 expose-fd listeners level admin
            defaults
                mode http
                timeout connect 5s
                timeout client 10s
                timeout server 10s
            frontend web
                bind {front}:7405
                default_backend nginx
            backend nginx
                server one {back}:7404
            """
        )
    )
    words: Words = ["haproxy", "-W", "-f", config, "-x", place / "admin.sock"]
    server = serve(slim_lab, words, 7405, "c3", stderr=subprocess.DEVNULL)
    url = f"http://{front}:7405/"
    with host_path(slim_lab, SERVER), host_path(slim_lab, "c3"):
        wrk(slim_lab, "c4", url, "-H", "Connection: close")
        wrk(slim_lab, "c4", url)
    # Reloaded under load, twice: the listener goes from the old worker to the new.
    load = slim_lab.popen(
        "c4",
        ["wrk", "-t1", "-c8", "-d4s", "-H", "Connection: close", url],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _unused in range(2):
        os.kill(server.pid, signal.SIGUSR2)
        done = slim_lab.run("c4", ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url])
        assert done.stdout == "200"
        wait_for(lambda: slim_lab.listens("c3", 7405), what="haproxy listens")
    said, _unused = load.communicate(timeout=30)
    assert "Non-2xx" not in said, said
    errors = re.search(r"Socket errors: connect (\d+), read (\d+)", said)
    assert not errors or int(errors[1]) == 0, said
    wrk(slim_lab, "c4", url, seconds=1)


NODE_SERVER = """
const http = require('http');
http.createServer((q, r) => {
  r.end(JSON.stringify([q.socket.remoteAddress, q.socket.localAddress, q.socket.localPort]));
}).listen(%(port)d, '%(ip)s', 1024);
"""
NODE_CLIENT = """
const http = require('http');
const kept = new http.Agent({keepAlive: true, maxSockets: 8}), fresh = new http.Agent();
let left = 400, bad = [];
function one(agent) {
  http.get({host: '%(ip)s', port: %(port)d, agent}, (r) => {
    let text = '';
    r.on('data', d => text += d);
    r.on('end', () => {
      const want = JSON.stringify(['%(me)s', '%(ip)s', %(port)d]);
      if (text !== want) bad.push(text);
      if (--left == 0) { console.log('bad', JSON.stringify(bad)); process.exit(0); }
    });
  }).on('error', e => { bad.push(String(e)); if (--left == 0) { console.log('bad', bad); process.exit(1); } });
}
for (let i = 0; i < 200; i++) { one(kept); one(fresh); }
"""


def test_node(slim_lab: Lab) -> None:
    need("node", "curl")
    values = {"ip": slim_lab.ip(SERVER), "port": 7406, "me": slim_lab.ip(CLIENT)}
    serve(slim_lab, ["node", "-e", NODE_SERVER % values], 7406)
    # One request before the storm: two hundred cold connects at once are another matter.
    slim_lab.run(CLIENT, ["curl", "-sS", f"http://{values['ip']}:{values['port']}/"])
    with host_path(slim_lab):
        said = slim_lab.run(CLIENT, ["node", "-e", NODE_CLIENT % values], check=False).stdout
        assert said == "bad []\n", said


def test_python_http_server(slim_lab: Lab, place: Path) -> None:
    need("curl")
    ip = slim_lab.ip(SERVER)
    data = os.urandom(300_000)
    (place / "file").write_bytes(data)
    words: Words = [PYTHON, "-m", "http.server", "--bind", ip, "--directory", place, "7407"]
    serve(slim_lab, words, 7407, stderr=subprocess.DEVNULL)
    with host_path(slim_lab):
        for _unused in range(10):
            said = slim_lab.run(CLIENT, ["curl", "-sS", f"http://{ip}:7407/file"], text=False)
            assert said.stdout == data


JAVA = """
import java.io.*;
import java.net.*;
import java.nio.*;
import java.nio.channels.*;
import java.util.*;

/** Blocking and selecting servers and clients in the JDK's own ways. */
public class Echo {
    static void serve(InetAddress ip, int port) throws Exception {
        ServerSocket plain = new ServerSocket(port, 256, ip);
        new Thread(() -> {
            for (;;) {
                try {
                    Socket s = plain.accept();
                    new Thread(() -> {
                        try (s) { s.getInputStream().transferTo(s.getOutputStream()); }
                        catch (IOException e) { }
                    }).start();
                } catch (IOException e) { return; }
            }
        }).start();
        Selector selector = Selector.open();
        ServerSocketChannel channel = ServerSocketChannel.open();
        channel.bind(new InetSocketAddress(ip, port + 1), 256);
        channel.configureBlocking(false);
        channel.register(selector, SelectionKey.OP_ACCEPT);
        System.out.println("ready");
        ByteBuffer buffer = ByteBuffer.allocate(65536);
        for (;;) {
            selector.select();
            Iterator<SelectionKey> keys = selector.selectedKeys().iterator();
            while (keys.hasNext()) {
                SelectionKey key = keys.next();
                keys.remove();
                if (key.isAcceptable()) {
                    SocketChannel s = channel.accept();
                    if (s == null) continue;
                    s.configureBlocking(false);
                    s.register(selector, SelectionKey.OP_READ);
                } else {
                    SocketChannel s = (SocketChannel) key.channel();
                    buffer.clear();
                    if (s.read(buffer) < 0) { s.close(); continue; }
                    buffer.flip();
                    while (buffer.hasRemaining()) s.write(buffer);
                }
            }
        }
    }

    static void check(boolean good, String what) {
        if (!good) { System.out.println("bad: " + what); System.exit(1); }
    }

    static void exchange(InputStream in, OutputStream out, int seed) throws IOException {
        byte[] data = new byte[20000];
        new Random(seed).nextBytes(data);
        out.write(data);
        out.flush();
        check(Arrays.equals(data, in.readNBytes(data.length)), "echo differs");
    }

    static void call(InetAddress ip, int port, String me) throws Exception {
        for (int n = 0; n < 60; n++) {
            InetSocketAddress to = new InetSocketAddress(ip, port + n % 2);
            if (n % 3 == 0) {
                try (Socket s = new Socket()) {
                    s.setTcpNoDelay(true);
                    s.connect(to, 5000);
                    check(s.getLocalAddress().getHostAddress().equals(me), "local " + s);
                    check(s.getRemoteSocketAddress().equals(to), "remote " + s);
                    exchange(s.getInputStream(), s.getOutputStream(), n);
                }
            } else {
                Selector selector = Selector.open();
                SocketChannel s = SocketChannel.open();
                s.configureBlocking(false);
                if (!s.connect(to)) {
                    s.register(selector, SelectionKey.OP_CONNECT);
                    check(selector.select(8000) == 1, "no OP_CONNECT");
                    check(s.finishConnect(), "finishConnect");
                }
                for (SelectionKey key : selector.keys()) key.cancel();
                selector.selectNow();
                selector.close();
                check(s.getRemoteAddress().equals(to), "remote " + s);
                check(s.getLocalAddress().toString().startsWith("/" + me + ":"), "local " + s);
                s.configureBlocking(true);
                exchange(s.socket().getInputStream(), s.socket().getOutputStream(), n);
                s.close();
            }
        }
        try {
            new Socket(ip, port + 9).close();
            check(false, "connected to a closed port");
        } catch (ConnectException e) { }
        System.out.println("ok");
    }

    public static void main(String[] a) throws Exception {
        InetAddress ip = InetAddress.getByName(a[1]);
        if (a[0].equals("serve")) serve(ip, Integer.parseInt(a[2]));
        else call(ip, Integer.parseInt(a[2]), a[3]);
    }
}
"""


def test_java(slim_lab: Lab, place: Path) -> None:
    """The JVM opens AF_INET6 sockets by itself: blocking, with a time-out, by selector."""
    need("java", "javac")
    (place / "Echo.java").write_text(JAVA)
    subprocess.run(["javac", "-d", place, place / "Echo.java"], check=True, timeout=120)
    ip = slim_lab.ip(SERVER)
    words: Words = [
        "java",
        "-Xmx64m",
        "-XX:+UseSerialGC",
        "-cp",
        place,
        "Echo",
    ]
    server = slim_lab.popen(
        SERVER, [*words, "serve", ip, "7410"], stdout=subprocess.PIPE, text=True
    )
    read_until(server, "ready", 30)
    with host_path(slim_lab):
        done = slim_lab.run(
            CLIENT, [*words, "call", ip, "7410", slim_lab.ip(CLIENT)], check=False, timeout=60
        )
        assert done.stdout == "ok\n", done.stdout + done.stderr


@pytest.mark.parametrize("words", [[], ["-R"], ["-P", "4"], ["--bidir"]], ids=" ".join)
def test_iperf3(slim_lab: Lab, words: list[str]) -> None:
    need("iperf3")
    ip = slim_lab.ip(SERVER)
    serve(slim_lab, ["iperf3", "-s", "-B", ip, "-p", "7420"], 7420, stdout=subprocess.DEVNULL)
    with host_path(slim_lab):
        said = slim_lab.run(CLIENT, ["iperf3", "-c", ip, "-p", "7420", "-t", "1", "-J", *words])
        report = json.loads(said.stdout)
        assert report["end"]["sum_received"]["bits_per_second"] > 1e8
        for row in report["start"]["connected"]:
            assert row["local_host"] == slim_lab.ip(CLIENT)
            assert row["remote_host"] == ip


def test_sockperf(slim_lab: Lab) -> None:
    need("sockperf")
    ip = slim_lab.ip(SERVER)
    words: Words = ["sockperf", "server", "--tcp", "-i", ip, "-p", "7421"]
    serve(slim_lab, words, 7421, stdout=subprocess.DEVNULL)
    with host_path(slim_lab):
        words = ["sockperf", "ping-pong", "--tcp", "-i", ip, "-p", "7421", "-t", "1"]
        said = slim_lab.run(CLIENT, words).stdout
        assert re.search(r"# dropped messages = 0; # duplicated messages = 0", said), said
