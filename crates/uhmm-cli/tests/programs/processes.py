"""Children of every kind: a pool that forks, bare forks, subprocesses, and threads."""

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import threading

SIZE = 48 << 20
PARTS = 16

rng = random.Random(11)
inherited = bytearray(b"".join(rng.randbytes(1024) + bytes(3072) for _ in range(SIZE // 4096)))


def digest(part):
    step = SIZE // PARTS
    return hashlib.sha256(memoryview(inherited)[part * step : (part + 1) * step]).hexdigest()


def change_and_digest(part):
    """Changes the child's copy; the parent's must stay as it was."""
    before = digest(part)
    step = SIZE // PARTS
    inherited[part * step : (part + 1) * step] = bytes([part]) * step
    return before, digest(part)


def main():
    whole = hashlib.sha256(inherited).hexdigest()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        plain = pool.map(digest, range(PARTS))
        assert [before for before, _ in pool.map(change_and_digest, range(PARTS), 1)] != []
    assert plain == [digest(part) for part in range(PARTS)], "children saw other bytes"
    assert hashlib.sha256(inherited).hexdigest() == whole, "children changed the parent"
    print("pool", hashlib.sha256("".join(plain).encode()).hexdigest())

    for number in range(4):
        child = os.fork()
        if child == 0:
            ok = hashlib.sha256(inherited).hexdigest() == whole
            inherited[:] = bytes(SIZE)
            ok = ok and not any(inherited[::4096])
            os._exit(number if ok else 99)
        inherited[0] ^= 0  # a write in the parent while the child runs
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == number
    print("forks", hashlib.sha256(inherited).hexdigest() == whole)

    script = "import sys, zlib; d = sys.stdin.buffer.read(); print(len(d), zlib.crc32(d))"
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", script], input=inherited, capture_output=True, check=True
        )
        print("subprocess", out.stdout.decode().strip(), len(out.stderr))

    results = [None] * PARTS
    def work(part):
        results[part] = digest(part)
    threads = [threading.Thread(target=work, args=(part,)) for part in range(PARTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == plain, "threads saw other bytes"
    print("OK processes")


main()
