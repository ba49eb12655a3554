"""Connectivity checks with a short timeout: the download libraries retry an unreachable server for up to a minute."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants


def reachable(url: str, seconds: float = 6) -> bool:
    """Whether a server responds to a HEAD request for `url`, with any status, within `seconds`.

    Proxy settings are respected. The request runs in a thread because DNS lookups have no timeout.
    """
    responded = threading.Event()

    def send_request():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            responded.set()
        except urllib.error.HTTPError:
            responded.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(seconds)
    return responded.is_set()


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Switches the Hugging Face library to offline mode, cache only, if the Hub is unreachable.

    Yields whether the Hub is reachable. The previous mode is restored on exit.
    """
    before = constants.HF_HUB_OFFLINE
    online = not before and reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not online
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE = before
