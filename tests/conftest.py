"""What every test may rely on."""

import signal

# A shell starts background commands with SIGINT ignored, and every process below inherits that: the tests that
# interrupt a process would wait for nothing. They run as from a terminal, however the suite was started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
