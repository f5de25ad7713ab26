"""Waiting for what another process does: what tests of processes share."""

import time


def wait_for(condition, seconds=180):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not come to that in time"
        time.sleep(0.05)
