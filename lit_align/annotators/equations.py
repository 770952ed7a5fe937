"""The other end of `Mathematical`: a program that reads questions line by line and answers each. It is run as a file, in a process of its
own, and imports nothing but the library."""

import json
import logging
import signal
import sys


def serve() -> None:
    """Answer until there are no more questions; a first line says that the library is there. The system ends the process at a question
    that takes too long: nothing that is written in Python would, inside a power of large numbers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: whoever asks decides when to end
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable()  # the library warns at every call that it does not watch the time
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        reference, response, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        expected = parse(reference, parsing_timeout=0)
        found = verify(expected, parse(response, parsing_timeout=0), timeout_seconds=0) if expected else None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
