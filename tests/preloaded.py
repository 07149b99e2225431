"""A `tok` that starts at once: each command is a fork of one process that has imported everything.

Two thirds of a suite at mini size would be imports of PyTorch, timm and open_clip, 70 times over. A command gets its own arguments,
environment, folder, streams and number of threads, and its exit code is the program's.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -ISs
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
told = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
streams = array.array("i", [0, 1, 2])
server.sendmsg([len(told).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(told)
sys.exit(int(server.recv(4) or b"70"))
"""


@contextmanager
def preloaded(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for the PATH whose `tok` is served; `environment` is that of the imports."""
    short = tempfile.TemporaryDirectory(
        prefix="tok-"
    )  # a socket's name may have a hundred bytes, fewer than a test's folder
    program, address = folder / "tok", f"{short.name}/socket"
    program.write_text(CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], env=dict(environment), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield folder
    finally:
        server.kill()
        server.wait()
        short.cleanup()


def serve(address: str) -> None:
    """Fork a command for each connection, until killed."""
    import open_clip  # noqa: F401
    import timm  # noqa: F401
    import torch  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    from tokcli.cli import cli
    from tokcli.stages import evaluate, sample, tokenize, train_decoder, train_proposal, train_tokenizer  # noqa: F401

    assert "eval" in cli.commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            command(connection)
        connection.close()


def command(connection: socket.socket) -> None:
    """Be the command that a client asks for; never returns."""
    import torch

    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    told = b""
    while len(told) < int.from_bytes(head, "big"):
        told += connection.recv(1 << 20)
    arguments, environment, folder = json.loads(told)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    sys.argv = ["tok", *arguments]
    code = 70
    try:
        from tokcli.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
