# SPDX-License-Identifier: Apache-2.0
"""router.json, map.json and admin requests, bent out of shape: accepted or refused with
the reader's own error, never another exception and never a router that is gone."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

from slim_router import config
from slim_router.admin import Admin
from slim_router.reader import ConfigError
from tests.fuzz.fuzzing import bend, generator, mutate, runs

ROUTER: dict[str, Any] = {
    "version": 1, "host": "node1", "address": "192.0.2.1", "trunk_port": 6790,
    "data_ports": [20000, 20999], "overlay": ["10.44.0.0/16"], "secure": "none",
    "metrics": "127.0.0.1:9478",
    "tls": {"ca": "/etc/slim/tls/ca.pem", "cert": "/etc/slim/tls/host.pem",
            "key": "/etc/slim/tls/host.key"},
    "bounds": {"swap_us": 2000, "blocking_swap_us": 10000, "reply_us": 10000, "lease_s": 30},
}  # fmt: skip
MAP: dict[str, Any] = {
    "version": 1, "revision": 1,
    "hosts": {"node1": {"address": "192.0.2.1", "trunk_port": 6790},
              "node2": {"address": "192.0.2.2", "trunk_port": 6790}},
    "endpoints": [
        {"name": "c1", "tenant": "default", "vip": "10.44.0.1", "host": "node1",
         "netns": "/run/netns/c1"},
        {"name": "c2", "tenant": "default", "vip": "10.44.0.2", "host": "node2",
         "netns": "/run/netns/c2"},
    ],
    "pools": [
        {"tenant": "default", "prefix": "10.44.128.0/20", "hosts": ["node1", "node2"]},
        {"tenant": "blue", "prefix": "10.44.128.0/24", "hosts": ["node2"]},
    ],
}  # fmt: skip


def test_parsed_values() -> None:
    rng = generator("values")
    refused = 0
    for _unused in range(runs(8_000)):
        for parse, good in ((config.parse_router, ROUTER), (config.parse_map, MAP)):
            value = good
            for _unused in range(rng.randint(1, 3)):
                value = bend(rng, value)
            try:
                parse(value)
            except ConfigError as error:
                assert str(error), "an error without words"
                refused += 1
    assert refused


def test_files(tmp_path: Path) -> None:
    rng = generator("files")
    router, fleet = tmp_path / "router.json", tmp_path / "map.json"
    texts = json.dumps(ROUTER).encode(), json.dumps(MAP).encode()
    router.write_bytes(texts[0])
    fleet.write_bytes(texts[1])
    config.load(router, fleet)
    for _unused in range(runs(800)):
        router.write_bytes(mutate(rng, texts[0]) if rng.random() < 0.5 else texts[0])
        fleet.write_bytes(mutate(rng, texts[1]))
        try:
            config.load(router, fleet)
        except ConfigError as error:
            assert str(error)


def test_admin_requests(tmp_path: Path) -> None:
    """The admin socket answers every line with one line of JSON, and lives on."""
    rng = generator("admin")
    good = [
        {"op": "status"},
        {"op": "connections", "endpoint": "c1", "limit": 5},
        {"op": "nothing"},
    ]

    async def handler(arguments: dict[str, Any]) -> object:
        return {"seen": sorted(arguments)}

    async def one(path: Path, line: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
        writer.write(line + b"\n")
        if rng.random() < 0.2:
            writer.write_eof()
        said = await asyncio.wait_for(reader.readline(), 10)
        reply = json.loads(said)
        assert set(reply) in ({"ok", "result"}, {"ok", "error"}), reply
        writer.close()

    async def body() -> None:
        admin = Admin(tmp_path / "a.sock")
        admin.register("status", handler, "status")
        admin.register("connections", handler, "connections", endpoint=str, limit=int)
        await admin.start()
        try:
            for _unused in range(runs(300)):
                value = rng.choice(good)
                if rng.random() < 0.3:
                    value = bend(rng, value)
                line = json.dumps(value, default=str).encode()
                if rng.random() < 0.7:
                    line = mutate(rng, line)
                await one(admin.path, line.replace(b"\n", b" "))
            await one(admin.path, b"[" * 60_000)
            await one(admin.path, b'{"op": "status"}')
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(admin.path))
                rude.send(b'{"op"')
            await one(admin.path, b'{"op": "status"}')
        finally:
            await admin.stop()

    asyncio.run(body())
