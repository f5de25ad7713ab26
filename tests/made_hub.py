"""A hub on this machine, for tests of downloads."""

import contextlib
import hashlib
import socket
import threading

from huggingface_hub import constants

REVISION = "0123456789abcdef0123456789abcdef01234567"


def reply(status, content=b"", length=None, **headers):
    length = len(content) if length is None else length
    headers = {"Content-Length": length, "Connection": "close"} | headers
    lines = [f"HTTP/1.1 {status} x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


@contextlib.contextmanager
def serving(respond):
    """Yields the address of a hub, and the list of the requests that it got (method, path).

    `respond(method, path, header)` returns the reply. None: the connection stays open, without one.
    """
    asked, stop = [], threading.Event()

    def talk(connection):
        with connection, contextlib.suppress(OSError):
            header = connection.recv(65536).decode()
            method, path, _ = header.split(" ", 2)
            if "agent-harnesses" in path:  # a request that the client library makes by itself
                connection.sendall(reply(404))
                return
            asked.append((method, path))
            if (answer := respond(method, path, header.lower())) is None:
                stop.wait(30)
            else:
                connection.sendall(answer)

    def accept(server):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        thread = threading.Thread(target=accept, args=(server,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            stop.set()
            thread.join()


def having(contents):
    """The `respond` of a hub with these files (by `repository/file`) in all revisions."""

    def respond(method, path, header):
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        content = contents.get(f"{repository}/{rest.partition('/')[2]}")
        if content is None:
            return reply(404)
        start = int(header.partition("range: bytes=")[2].partition("-")[0] or 0)
        rest = content[start:]
        told = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": REVISION}
        if start:
            told["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return reply(206 if start else 200, rest * (method == "GET"), len(rest), **told)

    return respond


def ask(endpoint, monkeypatch, folder):
    """Make the hub's client use this address, with an empty cache in a folder."""
    for name in ("MEDLIB_WEIGHTS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
