"""Messages between two processes of our own, over a socket: pickled, arrays beside the pickle, without a copy of them.

Only for sockets that nobody else can write to: whoever writes to one can run anything at its other end.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

__all__ = ["receive", "send"]

_HEAD = struct.Struct("<QI")  # bytes of the pickle, buffers beside it
_SIZE = struct.Struct("<Q")


def send(to: socket.socket, message: Any) -> None:
    """Send a message; waits until the other end has room for it.

    Raises:
        OSError: the other end is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(view.nbytes) for view in views)
    to.sendall(_HEAD.pack(len(data), len(views)) + sizes + data)
    for view in views:
        to.sendall(view)


def receive(source: socket.socket) -> Any:
    """The next message; waits for it.

    Raises:
        EOFError: the other end is gone.
        OSError: the socket is broken; TimeoutError, where it has a timeout.
    """
    length, count = _HEAD.unpack(_read(source, _HEAD.size))
    sizes = [_SIZE.unpack(_read(source, _SIZE.size))[0] for _ in range(count)]
    data = _read(source, length)
    return pickle.loads(data, buffers=[_read(source, size) for size in sizes])


def _read(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        n = source.recv_into(view[got:])
        if n == 0:
            raise EOFError("the other process is gone")
        got += n
    return data
