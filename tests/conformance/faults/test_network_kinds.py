"""Faults of the network, as the processes on both ends see them."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest
from sandbox_bench import Agent, agent_in, eventually, heal

from colos.chaos import ConnectionReset, PacketDelay, PacketLoss, Partition, SlowLink
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification

ECHO = """
def echo():
    '''Say again what comes, on every connection; `door` is where.'''
    for ours in ('near', 'first'):
        if ours in globals(): globals()[ours].close()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        while data := far.recv(65536):
            far.sendall(data)
    except OSError as error:
        os.write(said_in, error.errno.to_bytes(4, 'little'))
    else:
        os.write(said_in, bytes(4))
    signal.pause()

said, said_in = os.pipe()
door = DOOR
near = socket.socket(door.family)
near.connect(door.getsockname())
far, _ = door.accept()
near.settimeout(5)
fork('NAME', echo)
far.close()
"""
TCP_DOOR = "socket.create_server(('127.0.0.1', 0))"
PAIRS = f"""
door = {TCP_DOOR}
pairs = [(socket.create_connection(door.getsockname()), door.accept()[0]) for _ in range(3)]
"""
UNIX_DOOR = "socket.socket(socket.AF_UNIX); door.bind('door'); door.listen(4)"
CALL = "near.sendall(b'ping'); result = near.recv(4)"
SAID = "result = int.from_bytes(os.read(said, 4), 'little')"
KNOCK = """
caller = socket.socket(door.family)
caller.settimeout({timeout})
try:
    caller.connect(door.getsockname())
    result = 'open'
except TimeoutError:
    result = 'timeout'
except OSError as error:
    result = errno.errorcode[error.errno]
finally:
    caller.close()
"""
POST = """
post = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
post.bind(('127.0.0.1', 0))
post.setblocking(False)
"""
LETTERS = """
result = ''
for number in range({count}):
    post.sendto(b'x', post.getsockname())
    try:
        post.recv(1)
        result += '1'
    except BlockingIOError:
        result += '.'
"""


def converse(agent: Agent, door: str = TCP_DOOR, name: str = "echo") -> None:
    """A child that says again what the agent says to it."""
    agent.do(ECHO.replace("DOOR", door).replace("NAME", name))
    assert agent.do(CALL) == b"ping"


def knock(agent: Agent, timeout: float = 5) -> Any:
    """What a new connection to the door meets."""
    return agent.do(KNOCK.format(timeout=timeout))


def stands_still(agent: Agent) -> bool:
    """Whether nothing comes back on the old connection, and nothing is said of that."""
    agent.do("near.settimeout(0.05)")
    try:
        return agent.do("try: near.sendall(b'ping'); near.recv(4); result = False\nexcept TimeoutError: result = True")
    finally:
        agent.do("near.settimeout(5)")


def available(session: Session, kind: str) -> None:
    reason = fault_kinds()[kind].unavailable(session)
    if reason is not None:
        pytest.skip(": ".join(reason))


# --- the loopback --------------------------------------------------------------------------------


def test_a_loopback_that_is_down_carries_nothing_and_goes_on_afterwards(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("loopback-down")
    assert "down" in (lease.fired() or "")
    assert stands_still(inside)
    assert knock(inside, 0.05) == "timeout"
    assert inside.refused("socket.create_connection(('::1', 1))") == errno.EADDRNOTAVAIL
    heal(lease)
    assert inside.do("result = near.recv(4)") == b"ping", "TCP has sent again what was lost"
    assert knock(inside) == "open"
    assert inside.refused("socket.create_connection(('::1', 1))") == errno.ECONNREFUSED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_loopback_is_down_until_the_last_lease_ends(inside: Agent, order: tuple[int, int]) -> None:
    inside.do(POST)
    leases = [inside.inject("loopback-down"), inside.inject("loopback-down")]
    heal(leases[order[0]])
    assert inside.refused("post.sendto(b'x', post.getsockname()); post.recv(1)")
    heal(leases[order[1]])
    assert inside.do("post.sendto(b'x', post.getsockname()); result = post.recv(1)") == b"x"


def test_a_unix_socket_does_not_notice_that_the_loopback_is_down(inside: Agent) -> None:
    converse(inside, UNIX_DOOR)
    heal_me = inside.inject("loopback-down")
    assert inside.do(CALL) == b"ping"
    heal(heal_me)


def test_a_slow_link_lets_so_much_through_and_no_more(inside: Agent) -> None:
    available(inside.sandbox.session, "slow-link")
    converse(inside)
    lease = inside.inject("slow-link", bytes_per_s=32768)
    assert lease.fired() is None, "nothing was sent"
    # Three bursts: two of them have to wait, four seconds at this rate.
    inside.do("near.setblocking(False); sent = near.send(b'x' * 200000)")
    assert lease.fired()
    inside.do(
        """
time.sleep(0.1)
result = 0
try:
    while data := near.recv(65536): result += len(data)
except BlockingIOError: pass
assert result < sent, (result, sent)
got = result
near.settimeout(5)
"""
    )
    proof = lease.fired()
    heal(lease)
    assert lease.fired() or proof
    assert inside.do("while got < sent: got += len(near.recv(65536))\nresult = got == sent")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_slow_links_the_slower_holds_until_the_last_one_ends(inside: Agent, order: tuple[int, int]) -> None:
    available(inside.sandbox.session, "slow-link")
    inside.do(
        f"door = {TCP_DOOR}; near = socket.create_connection(door.getsockname()); far, _ = door.accept(); got = 0"
    )
    leases = [inside.inject("slow-link", bytes_per_s=rate) for rate in (1024, 16 << 20)]
    inside.do("near.setblocking(False); sent = near.send(b'x' * 300000); far.settimeout(0.2)")
    assert inside.do(
        """
try:
    while got < sent: got += len(far.recv(65536))
except TimeoutError: pass
result = got < sent
"""
    ), "at a kilobyte a second"
    heal(leases[order[0]])
    heal(leases[order[1]])
    inside.do("far.settimeout(5)\nwhile got < sent: got += len(far.recv(65536))")


def test_a_delayed_packet_comes_late(inside: Agent) -> None:
    available(inside.sandbox.session, "packet-delay")
    inside.do(POST)
    lease = inside.inject("packet-delay", ms=50)
    assert inside.do(LETTERS.format(count=1)) == ".", "it is under way still"
    eventually(lambda: inside.do("try: result = post.recv(1)\nexcept BlockingIOError: result = b''"), "it comes")
    assert "delayed" in (lease.fired() or "")
    heal(lease)
    assert inside.do(LETTERS.format(count=1)) == "1"


# --- packets -------------------------------------------------------------------------------------


def test_the_share_and_the_seed_say_which_packets_are_lost(inside: Agent) -> None:
    inside.do(POST)

    def lost(**arguments: Any) -> str:
        lease = inside.inject("packet-loss", **arguments)
        assert lease.fired() is None, "no packet, no proof"
        letters = str(inside.do(LETTERS.format(count=200)))
        assert lease.fired() == f"{letters.count('.')} packets dropped"
        heal(lease)
        return letters

    first = lost(share=0.2, seed=1)
    assert 20 <= first.count(".") <= 60, first
    assert lost(share=0.2, seed=1) == first, "the seed is all there is to chance"
    assert lost(share=0.2, seed=2) != first
    assert set(lost(share=1)) == {"."}
    assert set(inside.do(LETTERS.format(count=200))) == {"1"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_any_lease_loses_is_lost(inside: Agent, order: tuple[int, int]) -> None:
    inside.do(POST)
    leases = [inside.inject("packet-loss", share=share) for share in (1, 0.001)]
    assert inside.do(LETTERS.format(count=5)) == "....."
    heal(leases[order[0]])
    assert (inside.do(LETTERS.format(count=5)) == ".....") == (order == (1, 0))
    heal(leases[order[1]])
    assert inside.do(LETTERS.format(count=5)) == "11111"


def test_tcp_outlives_lost_packets(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("packet-loss", share=0.2, seed=3)
    for _ in range(5):
        assert inside.do(CALL) == b"ping"
    heal(lease)


# --- connections ---------------------------------------------------------------------------------


def test_a_tcp_connection_is_reset_for_both_ends(agent: Agent) -> None:
    converse(agent)
    lease = agent.inject("connection-reset", "agent")
    proof = lease.fired() or ""
    assert "was established, is closed" in proof
    assert "python" in proof
    assert agent.refused("near.recv(1)") == errno.ECONNRESET
    assert agent.refused("near.send(b'x')") == errno.EPIPE
    assert agent.do(SAID) == errno.ECONNRESET
    heal(lease)
    assert knock(agent) == "open"


def test_a_unix_connection_ends_for_both_ends(agent: Agent) -> None:
    converse(agent, UNIX_DOOR)
    lease = agent.inject("connection-reset", "agent/echo", protocol="unix")
    assert "was connected, is shut down" in (lease.fired() or "")
    assert agent.do("result = near.recv(1)") == b""
    assert agent.refused("near.send(b'x')") == errno.EPIPE
    assert agent.do(SAID) == 0, "the end of file"
    heal(lease)
    assert knock(agent) == "open"


def test_plumbing_and_the_line_to_the_test_are_no_connections(agent: Agent) -> None:
    """A socket pair, and what the agent itself answers on."""
    agent.do("one, other = socket.socketpair()")
    lease = agent.inject("connection-reset", "*", protocol="unix")
    assert lease.fired() is None
    assert agent.do("one.send(b'x'); result = other.recv(1)") == b"x"
    heal(lease)


def test_a_tcp_fault_leaves_unix_connections_alone_and_the_other_way_round(agent: Agent) -> None:
    converse(agent, UNIX_DOOR)
    assert agent.inject("connection-reset", "agent", protocol="tcp").fired() is None
    assert agent.do(CALL) == b"ping"


def test_one_connection_is_chosen_by_the_seed(agent: Agent) -> None:
    hit = set()
    for seed in range(8):
        agent.do(PAIRS)
        lease = agent.inject("connection-reset", "agent", which="one", seed=seed)
        closed = agent.do(
            """
result = []
for number, ends in enumerate(pairs):
    for end in ends: end.setblocking(False)
    try: ends[0].recv(1)
    except BlockingIOError: pass
    except ConnectionResetError: result.append(number)
    for end in ends: end.close()
door.close()
"""
        )
        assert len(closed) == 1
        assert (lease.fired() or "").count("closed") == 1
        hit.update(closed)
    assert len(hit) > 1, "the seed chooses"


def test_a_socket_that_waits_for_nobody_is_not_said_to_be_reset(agent: Agent) -> None:
    agent.do("door = " + TCP_DOOR)
    assert agent.inject("connection-reset", "agent").fired() is None
    assert knock(agent) == "open"


def test_a_half_open_connection_stands_still_and_a_new_one_works(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("half-open", "agent/echo")
    assert lease.fired() is None, "nothing was sent yet"
    assert stands_still(inside)
    assert "dropped" in (lease.fired() or "")
    assert knock(inside) == "open"
    heal(lease)
    assert inside.do("result = near.recv(4)") == b"ping", "TCP has sent again what was lost"


def test_one_connection_is_half_open_by_the_seed(inside: Agent) -> None:
    inside.do(PAIRS)
    lease = inside.inject("half-open", "agent", which="one", seed=5)
    through = inside.do(
        """
result = 0
for near, far in pairs:
    far.settimeout(0.05)
    near.send(b'x')
    try: result += len(far.recv(1))
    except TimeoutError: pass
"""
    )
    assert through == 2
    assert lease.fired()
    heal(lease)


def test_new_connections_are_refused_and_old_ones_go_on(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("connection-refused", "agent")
    assert lease.fired() is None, "nobody knocked yet"
    assert knock(inside) == "ECONNREFUSED"
    assert lease.fired() == "1 openings refused"
    assert inside.do(CALL) == b"ping"
    heal(lease)
    assert knock(inside) == "open"


def test_another_port_is_not_refused(inside: Agent) -> None:
    """What it listens on later, and IPv6 on the same footing."""
    inside.do("door = socket.create_server(('::1', 0), family=socket.AF_INET6)")
    lease = inside.inject("connection-refused", "agent")
    assert knock(inside) == "ECONNREFUSED"
    inside.do("door = " + TCP_DOOR)
    assert knock(inside) == "open"
    heal(lease)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_port_is_refused_until_the_last_lease_ends(inside: Agent, order: tuple[int, int]) -> None:
    inside.do("door = " + TCP_DOOR)
    leases = [inside.inject("connection-refused", "agent") for _ in range(2)]
    heal(leases[order[0]])
    assert knock(inside) == "ECONNREFUSED"
    heal(leases[order[1]])
    assert knock(inside) == "open"


# --- two sides -----------------------------------------------------------------------------------


def test_two_sides_are_parted_and_a_third_is_not(inside: Agent) -> None:
    converse(inside)
    inside.do("first = near")
    converse(inside, name="third")
    lease = inside.inject("partition", "agent/echo", peer="agent")
    assert inside.do(CALL) == b"ping", "the third answers"
    inside.do("near, second = first, near")
    assert stands_still(inside)
    assert "dropped" in (lease.fired() or "")
    assert knock(inside, 0.05) == "timeout"
    heal(lease)
    assert inside.do("result = near.recv(4)") == b"ping"
    assert knock(inside) == "open"


def test_a_partition_from_nobody_parts_nobody(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("partition", "agent/echo", peer="agent/nobody")
    assert inside.do(CALL) == b"ping"
    assert knock(inside) == "open"
    assert lease.fired() is None
    heal(lease)


def test_a_partition_from_a_third_leaves_two_alone(inside: Agent) -> None:
    converse(inside)
    inside.do("first = near")
    converse(inside, name="third")
    lease = inside.inject("partition", "agent/echo", peer="agent/third")
    for name in ("near", "first"):
        inside.do(f"{name}.sendall(b'pong')")
        assert inside.do(f"result = {name}.recv(4)") == b"pong"
    assert lease.fired() is None
    heal(lease)


def test_a_partition_from_all_the_others(inside: Agent) -> None:
    converse(inside)
    lease = inside.inject("partition", "agent/echo")
    assert stands_still(inside)
    assert lease.fired()
    heal(lease)
    assert inside.do("result = near.recv(4)") == b"ping"


# --- ends, limits --------------------------------------------------------------------------------

LASTING = ("loopback-down", "slow-link", "packet-loss", "half-open", "connection-refused", "partition", "packet-delay")


@pytest.mark.parametrize("kind", LASTING)
def test_the_end_of_the_sandbox_heals(namespaces: Session, kind: str) -> None:
    available(namespaces, kind)
    with agent_in(namespaces) as agent:
        converse(agent)
        lease = agent.inject(kind, "agent" if fault_kinds()[kind].targeted else None)
        agent.sandbox.destroy()
        heal(lease)


def test_a_heal_while_the_target_is_stopped_or_gone(inside: Agent) -> None:
    converse(inside)
    echo = inside.process("echo")
    lease = inside.inject("half-open", "agent/echo")
    for target in inside.running.targets("agent/echo"):
        target.signal(signal.SIGKILL)
        target.close()
    eventually(lambda: not [p for p in inside.sandbox.processes() if p.pid == echo.pid and p.state != "Z"], "it died")
    heal(lease)


@pytest.mark.parametrize("kind", LASTING)
def test_the_network_of_the_host_is_never_touched(bare: Session, kind: str) -> None:
    reason, cure = fault_kinds()[kind].unavailable(bare) or ("", "")
    assert "host's" in reason
    assert cure
    with agent_in(bare) as agent, pytest.raises(FaultUnavailable):
        agent.inject(kind, "agent" if fault_kinds()[kind].targeted else None)


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5, "half", True, None])
def test_a_share_of_packets_is_a_share(agent: Agent, wrong: object) -> None:
    with pytest.raises(InvalidSpecification, match="more than 0 and at most 1"):
        PacketLoss(shares=[wrong])  # type: ignore[list-item]
    with pytest.raises(InvalidSpecification, match="more than 0 and at most 1"):
        agent.inject("packet-loss", share=wrong)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SlowLink(bytes_per_s=[0]), "bytes a second"),
        (lambda: SlowLink(bytes_per_s=[1 << 40]), "bytes a second"),
        (lambda: PacketDelay(ms=[-1]), "at most 60000 ms"),
        (lambda: Partition(peers=[""]), "a peer is"),
        (lambda: ConnectionReset(protocols=["udp"]), "'tcp' or 'unix'"),
    ],
)
def test_bad_parameters_are_refused_where_they_are_made(make: Any, match: str) -> None:
    with pytest.raises(InvalidSpecification, match=match):
        make()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("connection-reset", {"protocol": "udp"}),
        ("connection-reset", {"which": "some"}),
        ("connection-reset", {"which": "one", "seed": -1}),
        ("half-open", {"which": "some"}),
        ("half-open", {"seed": "x"}),
        ("packet-loss", {"seed": 1.5}),
        ("partition", {"peer": 3}),
        ("slow-link", {"bytes_per_s": "fast"}),
        ("packet-delay", {"ms": 1e9}),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_done(agent: Agent, kind: str, arguments: dict[str, Any]) -> None:
    converse(agent)
    with pytest.raises(InvalidSpecification):
        agent.inject(kind, "agent" if fault_kinds()[kind].targeted else None, **arguments)
    assert agent.do(CALL) == b"ping"
