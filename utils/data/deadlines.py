"""Every request of the Hugging Face client gets a limit of silence and a least speed."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

SECONDS_OF_SILENCE = 15.0  # of a connection; the client itself asks up to six times before its error reaches us
SLOW_SECONDS, SLOW_BYTES = 60.0, 1000  # an answer with less than this many bytes a second after so long is given up


@functools.cache
def set_deadlines() -> None:
    """Give every request of the hub's client a deadline, from here on in this process.

    A server that accepts and never answers would hang the client for ever, and one that sends a byte now and then would
    never be silent for long enough. A longer or shorter limit that the client names itself (downloads) counts instead.
    """
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
