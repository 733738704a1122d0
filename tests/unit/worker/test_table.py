# SPDX-License-Identifier: Apache-2.0
"""The table of live connections: rows, names in use, and rows of the dead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slim_router import table as module
from slim_router.row import Row
from slim_router.sockdiag import Sock
from slim_router.table import Table
from slim_router.wire import R_NOT_LISTENING, pack_addr

US, THEM = pack_addr("10.44.0.1"), pack_addr("10.44.0.2")
HOST, OTHER = pack_addr("192.0.2.1"), pack_addr("192.0.2.2")


def sock(cookie: int, **changes) -> Sock:
    """A live socket of the kernel's."""
    made = Sock(cookie, HOST, 33333, OTHER, 20000, 1, 11, 22, 1, 0)
    return made._replace(**changes)


def out(sport: int, *, slim: bool = True, why: int = 0, dport: int = 80) -> Row:
    return Row(True, slim, why, US, sport, THEM, dport, 0.0)


class Kernel:
    """The sockets that are alive, and how often somebody asked."""

    def __init__(self):
        self.alive: dict[int, Sock] = {}
        self.asked = 0

    def __call__(self, _info):
        self.asked += 1
        return iter(list(self.alive.values()))


def made(*cookies: int) -> tuple[Table, Kernel]:
    kernel = Kernel()
    kernel.alive = {cookie: sock(cookie) for cookie in cookies}
    return Table(kernel), kernel


def test_only_outgoing_host_connections_take_a_name():
    table, _unused = made()
    table.add(1, out(1001))
    table.add(2, out(1002, slim=False, why=R_NOT_LISTENING))
    table.add(3, Row(False, True, 0, THEM, 1003, US, 80, 0.0))
    assert set(table.names) == {(THEM, 80, 1001)}
    for cookie in (1, 2, 3, 4):
        table.drop(cookie)
    assert not table.rows
    assert not table.names


def test_reap_forgets_the_dead_and_frees_their_names():
    table, kernel = made(1, 3)
    for cookie in (1, 2, 3):
        table.add(cookie, out(1000 + cookie))
    table.reap()
    assert set(table.rows) == {1, 3}
    assert set(table.names) == {(THEM, 80, 1001), (THEM, 80, 1003)}
    kernel.alive.clear()
    table.reap()
    assert not table.rows
    assert not table.names


def test_an_empty_table_does_not_ask_the_kernel():
    table, kernel = made()
    table.reap()
    assert kernel.asked == 0


def test_a_name_outlives_an_older_row_of_the_same_name():
    """A program that binds its source port uses the name again before the dead is reaped."""
    table, _unused = made(2)
    table.add(1, out(1001))
    table.add(2, out(1001))
    table.reap()
    assert set(table.rows) == {2}
    assert (THEM, 80, 1001) in table.names
    table.drop(2)
    assert not table.names


def test_a_cookie_that_comes_again_gives_its_old_name_back():
    table, _unused = made()
    table.add(1, out(1001))
    table.add(1, out(1002))
    assert set(table.names) == {(THEM, 80, 1002)}


def test_growth_makes_the_table_look_at_the_kernel(monkeypatch):
    monkeypatch.setattr(module, "GROWTH", 10)
    table, kernel = made(*range(5))
    for cookie in range(100):
        table.add(cookie, out(1000 + cookie))
        assert len(table.rows) <= 5 + 3 * 10 + 1
    assert 2 <= kernel.asked <= 20
    assert set(range(5)) <= set(table.rows)


def test_report_joins_rows_with_the_kernels_figures_and_forgets_the_dead():
    table, kernel = made(1, 2, 3)
    kernel.alive[9] = sock(9)  # nobody's we know
    kernel.alive[2] = sock(2, src=US, dst=THEM, dport=80)
    table.add(1, out(1001))
    table.add(2, out(0, slim=False, why=R_NOT_LISTENING))
    table.add(3, Row(False, True, 0, THEM, 1003, US, 80, 0.0))
    table.add(4, out(1004))
    rows = {row["cookie"]: row for row in table.report("a1")}
    assert set(rows) == {1, 2, 3}
    assert 4 not in table.rows
    slim = rows[1]
    assert (slim["src"], slim["sport"], slim["dst"], slim["dport"]) == (
        "10.44.0.1", 1001, "10.44.0.2", 80,
    )  # fmt: skip
    assert (slim["hsrc"], slim["hsport"], slim["hdst"], slim["hdport"]) == (
        "192.0.2.1", 33333, "192.0.2.2", 20000,
    )  # fmt: skip
    assert (slim["path"], slim["why"], slim["direction"]) == ("slim", "", "out")
    assert (slim["bytes_sent"], slim["bytes_received"], slim["state"]) == (11, 22, "established")
    # An overlay connection's own addresses are the virtual ones; the kernel knows its port.
    plain = rows[2]
    assert (plain["src"], plain["sport"], plain["hsrc"]) == ("10.44.0.1", 33333, None)
    assert (plain["path"], plain["why"]) == ("overlay", "peer-not-listening")
    assert (rows[3]["direction"], rows[3]["sport"]) == ("in", 1003)


def test_a_stranger_s_socket_is_not_reported_as_the_shim_s_own():
    """A container may name any cookie in CONNECT: those of the host's sockets can be guessed."""
    table, _unused = made(7)
    table.add(7, out(0, slim=False, why=R_NOT_LISTENING))
    assert table.report("a1") == []


def test_growth_is_looked_at_outside_of_the_set_up_path(monkeypatch):
    monkeypatch.setattr(module, "GROWTH", 10)
    kernel, later = Kernel(), []
    table = Table(kernel, later.append)
    for cookie in range(15):
        table.add(cookie, out(1000 + cookie))
    assert kernel.asked == 0
    assert len(later) == 1
    while later:
        later.pop()()
    assert not table.rows


def test_a_look_at_the_kernel_takes_several_passes_and_spares_what_came_meanwhile():
    kernel, later = Kernel(), []
    kernel.alive = {1: sock(1)}
    table = Table(kernel, later.append, lambda: [kernel(False), kernel(False)])
    table.add(1, out(1001))
    table.add(2, out(1002))
    table.reap()
    table.reap()  # one is under way
    table.add(3, out(1003))
    while later:
        later.pop()()
    assert set(table.rows) == {1, 3}


def test_a_kernel_that_does_not_answer_buries_nobody():
    def silent(info):
        if info is not None:
            raise TimeoutError
        yield sock(0)  # a generator, as sockdiag.dump is

    table = Table(silent)
    table.add(1, out(1001))
    table.reap()
    table.reap()
    assert set(table.rows) == {1}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 15), st.integers(1, 4)),
            st.tuples(st.just("drop"), st.integers(0, 15), st.just(0)),
            st.tuples(st.just("die"), st.integers(0, 15), st.just(0)),
            st.tuples(st.just("reap"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_a_name_is_in_use_as_long_as_a_row_has_it(steps):
    table, kernel = made()
    used: set[int] = set()
    for what, cookie, port in steps:
        if what == "add" and cookie not in used:  # the kernel gives a cookie once
            used.add(cookie)
            kernel.alive[cookie] = sock(cookie)
            table.add(cookie, out(port))
        elif what == "drop":
            table.drop(cookie)
        elif what == "die":
            kernel.alive.pop(cookie, None)
        else:
            table.reap()
        wanted = {(THEM, 80, row.sport) for row in table.rows.values()}
        assert set(table.names) == wanted
