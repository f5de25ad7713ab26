"""Waiting for another process: what tests of processes share."""

import time


def wait_for(condition, seconds=180):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"not so after {seconds} s"
        time.sleep(0.05)
