"""A function that waits for another process. Tests of processes share it."""

import time


def wait_for(condition, seconds=180):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"not so after {seconds} s"
        time.sleep(0.05)
