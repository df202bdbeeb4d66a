"""Messages between a manager and its executors come whole, however the stream is cut."""

import socket

import pytest

from intervaljob.worker import wire

MESSAGES = [wire.Checkpoint(1, 2, "ä" * size) for size in (0, 1, 70_000)]
STREAM = b"".join(map(wire.encode, MESSAGES))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000, len(STREAM)])
def test_a_stream_in_pieces_gives_each_message_once(size: int) -> None:
    decoder = wire.Stream(wire.to_manager)
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == MESSAGES


def test_a_socket_gives_each_message_and_then_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, wire.reader(theirs) as stream:
        ours.sendall(b"".join(map(wire.encode, MESSAGES[:2])) + wire.encode(MESSAGES[2])[:100])
        assert [wire.receive(stream, wire.to_manager) for _ in range(2)] == MESSAGES[:2]
        ours.close()
        assert wire.receive(stream, wire.to_manager) is None
