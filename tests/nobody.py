"""What a function gives where permissions bind it."""

import os
import pickle


def as_nobody(function):
    """What `function` returns where permissions bind it.

    root forks and becomes nobody.
    """
    if os.geteuid() != 0:
        return function()
    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = pickle.dumps(function())
        except BaseException as e:
            answer = pickle.dumps(f"{type(e).__name__}: {e}")
        os.write(forth, answer)
        os._exit(0)
    os.close(forth)
    with os.fdopen(back, "rb") as f:
        answer = f.read()
    assert os.waitpid(pid, 0)[1] == 0
    return pickle.loads(answer)
