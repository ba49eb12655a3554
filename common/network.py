"""Whether a server can be reached, found out in seconds and not in the minute that the download libraries take."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import huggingface_hub


def reachable(url: str, seconds: float = 6) -> bool:
    """Whether a server answers at `url`, with any status, within `seconds`; proxies are honoured.

    The asking happens in a thread because a name look-up cannot be given a time limit.
    """
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Inside, the Hub's libraries use their cache alone if the Hub does not answer. Yields whether it answers."""
    hub, data = huggingface_hub.constants, datasets.config  # each keeps its own copy of the setting
    before = hub.HF_HUB_OFFLINE, data.HF_HUB_OFFLINE
    online = not hub.HF_HUB_OFFLINE and reachable(hub.ENDPOINT)
    if not online:
        hub.HF_HUB_OFFLINE = data.HF_HUB_OFFLINE = True
    try:
        yield online
    finally:
        hub.HF_HUB_OFFLINE, data.HF_HUB_OFFLINE = before
