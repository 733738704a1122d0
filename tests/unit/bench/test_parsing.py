# SPDX-License-Identifier: Apache-2.0
"""What the benchmarked programs and the kernel print, and what we read from it."""

import pytest

from bench.conditions import brief, parse_congestion, parse_offload, parse_steering
from bench.lab import BenchError, parse_device_bytes, rows_of
from bench.micro import parse_private_kb
from bench.programs import iperf3, memcached, postgresql, redis, sockperf
from bench.programs.web import parse_wrk

WRK = """\
Running 1s test @ http://192.0.2.2:7104/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   332.11us  650.00us  12.30ms   95.00%
    Req/Sec    52.10k     1.20k   53.90k    80.00%
  Latency Distribution
     50%  236.00us
     75%  300.00us
     90%  420.00us
     99%    1.42ms
  52123 requests in 1.00s, 40.10MB read
{extra}Requests/sec:  52105.33
Transfer/sec:     40.05MB
"""


def test_wrk_without_errors():
    result = parse_wrk(WRK.format(extra=""))
    assert (result.rate, result.p99_ms) == (52105.33, 1.42)
    assert result.p50_ms == pytest.approx(0.236)
    assert result.problems() == []


def test_wrk_errors_are_summed():
    extra = (
        "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    )
    result = parse_wrk(WRK.format(extra=extra))
    assert result.errors == 15
    assert "15" in result.problems()[0]


def test_redis_benchmark_csv():
    text = (
        '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
        '"p99_latency_ms","max_latency_ms"\n'
        '"SET","32432.43","1.1","0.2","0.9","2.0","3.1","9.0"\n'
        '"GET","29702.97","1.0","0.2","0.9","2.0","3.679","9.0"\n'
    )
    assert redis.parse(text) == {
        "set": 32432.43, "set_p99_ms": 3.1, "get": 29702.97, "get_p99_ms": 3.679,
    }  # fmt: skip


def test_redis_benchmark_that_could_not_connect():
    with pytest.raises(BenchError, match="missing"):
        redis.parse("Could not connect to Redis at 192.0.2.2:7100: Connection refused\n")


def test_memcaslap_summary():
    text = (
        "verify_misses: 0\nverify_failed: 3\n\n"
        "Run time: 2.0s Ops: 90970 TPS: 45485 Net_rate: 7.9M/s\n"
    )
    assert memcached.parse(text) == (45485.0, 3)


def test_pgbench():
    text = (
        "number of failed transactions: 2 (0.010%)\nlatency average = 0.310 ms\n"
        "tps = 12892.123456 (without initial connection time)\n"
    )
    assert postgresql.parse(text) == (12892.123456, 0.310, 2)


def test_pgbench_with_connections():
    text = (
        "latency average = 30.718 ms\naverage connection time = 7.1 ms\n"
        "tps = 130.215 (including reconnection times)\n"
    )
    assert postgresql.parse(text) == (130.215, 30.718, 0)


def test_sockperf():
    text = (
        "sockperf: Summary: Round trip is 26.22 usec\n"
        "sockperf: ---> percentile 99.000 =  500.910\nsockperf: ---> percentile 75.000 = 30.0\n"
        "sockperf: ---> percentile 50.000 =   26.220\n"
    )
    assert sockperf.parse(text) == {"p50_us": 26.22, "p99_us": 500.91}


def test_iperf3():
    text = """{"end": {"sum_received": {"bits_per_second": 8e9, "bytes": 2000000000, "seconds": 2},
      "cpu_utilization_percent": {"host_total": 30, "remote_total": 20},
      "sender_tcp_congestion": "cubic"}}"""
    values, congestion = iperf3.parse(text)
    assert values == {"gbps": 8.0, "cpu_per_gb": pytest.approx(0.5)}
    assert congestion == "cubic"


def test_iperf3_error():
    with pytest.raises(BenchError, match="unable to connect"):
        iperf3.parse('{"error": "unable to connect to server"}')


def test_nothing_is_no_figure():
    for parse in (
        parse_wrk,
        redis.parse,
        memcached.parse,
        postgresql.parse,
        sockperf.parse,
        iperf3.parse,
    ):
        with pytest.raises(BenchError):
            parse("")


def test_device_bytes_leave_loopback_out():
    text = (
        "Inter-|   Receive                  |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop\n"
        "    lo: 900 9 0 0 0 0 0 0 900 9 0 0 0 0 0 0\n"
        "  eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n"
    )
    assert parse_device_bytes(text) == 120


def test_private_memory():
    text = "Rss: 4000 kB\nShared_Clean: 3000 kB\nPrivate_Clean: 12 kB\nPrivate_Dirty: 96 kB\n"
    assert parse_private_kb(text) == 108


def test_offload_settings():
    text = (
        "Features for eth0:\ntcp-segmentation-offload: on\n"
        "tx-udp_tnl-segmentation: off [fixed]\nrx-checksumming: on\n"
    )
    assert parse_offload(text) == {"TSO": True, "tunnel TSO": False}


def test_settings_in_one_line():
    device = {"kind": "veth", "mtu": 1500, "offload": {"TSO": True, "tunnel TSO": False}}
    bridge = {"kind": "bridge", "mtu": 1450, "offload": {}}
    found = {
        "lab": {"rtt_us": 580},
        "nodes": {
            "c1": {
                "devices": {"br-slim": bridge, "eth0": device},
                "steering": {},
                "route_congestion": ["cubic"],
            }
        },
    }
    assert brief(found) == (
        "TCP cubic, eth0 MTU 1500 TSO on tunnel TSO off, steering none, 580 us of round trip added"
    )


def test_settings_that_nobody_told():
    assert brief({}) == "TCP ?, steering none"


def test_steering_shows_only_masks_that_are_set():
    text = (
        "/sys/class/net/eth0/queues/rx-0/rps_cpus:00000000\n"
        "/sys/class/net/vx-slim/queues/rx-0/rps_cpus:00000000,00000003\n"
    )
    assert parse_steering(text) == {"vx-slim": "00000000,00000003"}


def test_congestion_control_in_force():
    text = (
        "0 0 192.0.2.1:40000 192.0.2.2:20000\n"
        "\t cubic wscale:7,7 rto:204 rtt:0.02/0.01 mss:1448\n"
        "0 0 192.0.2.1:40001 192.0.2.2:20000\n\t bbr wscale:7,7 rto:204\n"
    )
    assert parse_congestion(text) == {"cubic", "bbr"}


@pytest.mark.parametrize("answer", [[{"a": 1}], {"connections": [{"a": 1}]}])
def test_rows_of_slimctl(answer):
    assert rows_of(answer, "connections") == [{"a": 1}]


@pytest.mark.parametrize("answer", [None, "no", {"connections": 3}])
def test_no_rows(answer):
    assert rows_of(answer, "connections") is None
