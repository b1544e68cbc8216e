"""Reads many HDF5 files as `hdf5` does, with one start of Python for all of them.

    python -I -S keras_reader.py SOCKET CHILD BYTES FOLDER...

imports the script CHILD once. For each request (three streams and the arguments) it
forks a process that does what the script does, and answers with its exit status.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from types import SimpleNamespace

ERROR = 70  # one that the script does not catch


def serve(connection, script):
    """Answer requests until the other end is closed."""
    spec = importlib.util.spec_from_file_location("hdf5_child", script)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    while True:
        message, streams, _, _ = socket.recv_fds(connection, 2**16, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            _read(child, message, streams)
        for stream in streams:
            os.close(stream)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(str(status).encode())


def _read(child, message, streams):
    """Do what the script does, and end this process."""
    status = ERROR
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.argv[1:] = json.loads(message)
        status = child.main()
        sys.stderr.flush()
    finally:
        os._exit(status)


@contextmanager
def reader():
    """Yield what may stand for the module `subprocess` in `hdf5`."""
    started = []

    def run(command, *, stdin, stdout, stderr, env, timeout):
        python, isolated, bare, script, *arguments = command
        if not started:
            ours, theirs = socket.socketpair()
            number = theirs.fileno()
            start = [python, isolated, bare, __file__, str(number), script, *arguments]
            process = subprocess.Popen(start, env=env, pass_fds=[number])
            theirs.close()
            started.extend((process, ours))
        connection = started[1]
        connection.settimeout(timeout)
        with tempfile.TemporaryFile() as errors:
            streams = [file.fileno() for file in (stdin, stdout, errors)]
            socket.send_fds(connection, [json.dumps(arguments).encode()], streams)
            status = int(connection.recv(16))
            errors.seek(0)
            return SimpleNamespace(returncode=status, stderr=errors.read())

    try:
        yield SimpleNamespace(
            run=run, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
        )
    finally:
        if started:
            started[1].close()
            assert started[0].wait(60) == 0  # errors of `run` are taken for damage


if __name__ == "__main__":
    sys.path.extend(sys.argv[4:])
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
