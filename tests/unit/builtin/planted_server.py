"""A server that does one thing wrong at each request, and else is in order: stops when told, closes, removes.

Run as ``python -I -S planted_server.py SOCKET WHAT``.
"""

import os
import signal
import socket
import sys
import threading


def stop(*_):
    os._exit(0)


def spin():
    # Taken by this thread, it would not wake the other, where Python calls the handler (the kernel takes another
    # thread than the first one where that has a signal to see to, such as the SIGCONT at a starvation's end).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        pass


def main(path, what):
    if os.path.exists("poison"):
        sys.exit(3)
    signal.signal(signal.SIGTERM, stop)
    if os.path.exists(path):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(16)
    kept, number = [], 0
    while True:
        connection, _ = server.accept()
        if not connection.recv(100):
            connection.close()  # only to see whether we are ready
            continue
        number += 1
        name = f"planted-{os.getpid()}-{number}"
        if what == "no_socket_leak":
            kept.append(connection)
        elif what == "no_temporary_file_leak":
            os.close(os.open(f"{os.environ['TMPDIR']}/{name}", os.O_CREAT | os.O_WRONLY))
        elif what == "no_shared_memory_leak":
            os.close(os.open(f"/dev/shm/{name}", os.O_CREAT | os.O_WRONLY))
        elif what == "no_busy_loop" and number == 1:
            threading.Thread(target=spin, daemon=True).start()
        elif what == "no_restart_storm":
            os.mkdir("poison")
        connection.send(b"done")
        if what == "no_restart_storm":
            os._exit(4)
        if what != "no_socket_leak":
            connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
