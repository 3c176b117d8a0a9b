"""Every request of the Hugging Face client gets a limit of silence and a least speed, and so does the look-up of names.

Three things would wait for ever or for an hour: the client's requests (httpx), the system's resolver, which knows no
time limit of ours, and hf_xet, a library in Rust that fetches large files and is told by variables.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS_OF_SILENCE = 15.0  # of a connection; the client itself asks up to six times before its error reaches us
XET_RETRIES = 2  # of hf_xet's own; by default it waits six times two minutes
SLOW_SECONDS, SLOW_BYTES = 60.0, 1000  # an answer with less than this many bytes a second after so long is given up


@functools.cache
def set_deadlines() -> None:
    """Give every request of the hub's client a deadline, from here on in this process.

    A server that accepts and never answers would hang the client for ever, and one that sends a byte now and then would
    never be silent for long enough. A longer or shorter limit that the client names itself (downloads) counts instead.
    """
    for name in ("READ", "CONNECT"):
        os.environ.setdefault(f"HF_XET_CLIENT_{name}_TIMEOUT", f"{SECONDS_OF_SILENCE:g}s")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", str(XET_RETRIES))

    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import httpx
    from huggingface_hub.utils._http import default_client_factory  # keeps its hook for offline mode, and proxies

    class Watched(httpx.SyncByteStream):
        def __init__(self, stream: Any, request: Any) -> None:
            self._stream, self._request = stream, request

        def __iter__(self) -> Iterator[bytes]:
            began, size = time.monotonic(), 0
            for block in self._stream:
                size += len(block)
                seconds = time.monotonic() - began
                if seconds > SLOW_SECONDS and size < SLOW_BYTES * seconds:
                    raise httpx.ReadTimeout(f"only {size} bytes in {seconds:.0f} s", request=self._request)
                yield block

        def close(self) -> None:
            self._stream.close()

    def limit(request: Any) -> None:  # here, not as the client's default: the list of files asks for timeout=None
        if not is_found(host := host_to_find(str(request.url)), SECONDS_OF_SILENCE):
            raise httpx.ConnectTimeout(f"no name server says where {host} is", request=request)
        limits = request.extensions["timeout"]
        request.extensions["timeout"] = {name: value or SECONDS_OF_SILENCE for name, value in limits.items()}

    def watch(response: Any) -> None:
        response.stream = Watched(response.stream, response.request)

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = {"request": [*hooks["request"], limit], "response": [*hooks["response"], watch]}
        return made

    set_client_factory(client)


_lookups: dict[str, tuple[threading.Thread, float]] = {}  # the last one of each host, and when it began
_lookups_lock = threading.Lock()  # downloads run side by side


def is_found(host: str, seconds: float) -> bool:
    """Whether the resolver answers within `seconds`, whatever it answers.

    It cannot be interrupted, so it is asked in a thread. One that was late already is not waited for again.
    """
    with _lookups_lock:
        thread, began = _lookups.get(host, (None, 0.0))
        if thread is None or not thread.is_alive():
            thread, began = threading.Thread(target=_look_up, args=(host,), daemon=True), time.monotonic()
            thread.start()
            _lookups[host] = thread, began
    thread.join(max(0.0, began + seconds - time.monotonic()))
    return not thread.is_alive()


def _look_up(host: str) -> None:
    with contextlib.suppress(OSError, UnicodeError):  # the request itself will say it
        socket.getaddrinfo(host, None)


def host_to_find(url: str) -> str:
    """The host that this machine looks up for a request to `url`: the proxy's where there is one."""
    address, proxies = urlsplit(url), getproxies()
    host = address.hostname or ""
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return host
    return urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or ""
