"""What stands in for the proxy's port in a jail that has none: 3128 to the proxy's Unix socket (pure).

The text is run as the job, with the job's own rights: it needs no capability, and it can do nothing that the
job could not do itself. It becomes the command; a child of it forwards until the job ends. A program that
speaks to the socket by itself does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.sandbox.spec import GATEWAY, INET_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOPBACK4, _PORT = INET_SOCKETS["proxy4"][2:]
_LOOPBACK6 = INET_SOCKETS["proxy6"][2]

# The listening sockets are there before the command is. SIGINT and its like are the command's.
_TEXT: Final = f"""
import asyncio, os, signal, socket, sys

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()

async def forward(reader, writer):
    try:
        to_reader, to_writer = await asyncio.open_unix_connection("{GATEWAY}/proxy.sock")
    except OSError:
        writer.transport.abort()
        return
    await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
    to_writer.close()
    writer.close()

async def main():
    servers = [await asyncio.start_server(forward, sock=each) for each in listeners]
    await asyncio.gather(*(server.serve_forever() for server in servers))

listeners = [socket.create_server(("{_LOOPBACK4}", {_PORT})),
             socket.create_server(("{_LOOPBACK6}", {_PORT}), family=socket.AF_INET6)]
if os.fork() == 0:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # else the job's output would not end with the command
        os.dup2(null, fd)
    asyncio.run(main())
for each in listeners:
    each.close()
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a command must not
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(f"{{sys.argv[1]}}: {{error.strerror}}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


def forwarded(argv: Sequence[str]) -> list[str]:
    """The command, with the proxy's port in front of the socket."""
    return ["/usr/bin/python3", "-I", "-c", _TEXT, *argv]
