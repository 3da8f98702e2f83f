"""Large lists, dicts, strings, bytes and arrays; prints checksums of all of them."""

import array
import gc
import random
import zlib

rng = random.Random(7)


def checksum(parts):
    total = 0
    for part in parts:
        total = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode(), total)
    return f"{total:08x}"


numbers = [i * i for i in range(1_000_000)]
rng.shuffle(numbers)
table = {f"key-{i}": (i, str(i) * 3) for i in range(200_000)}
blocks = [rng.randbytes(512) + bytes(3584) for _ in range(8_000)]
words = array.array("Q", (i * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for i in range(2_000_000)))

print("numbers", len(numbers), sum(numbers), checksum(numbers[::97]))
print("table", len(table), checksum(table[f"key-{i}"] for i in range(0, 200_000, 41)))
print("blocks", len(blocks), checksum(blocks))
print("words", len(words), checksum([words.tobytes()]))

# Change all of it, and let part of it go.
numbers.sort()
assert all(numbers[i] == i * i for i in range(0, len(numbers), 13))
for i in range(0, 200_000, 2):
    del table[f"key-{i}"]
buffer = bytearray(b"".join(blocks))
del blocks[::3]
gc.collect()
for i in range(0, len(buffer), 4096):
    buffer[i] ^= 0xFF
print("numbers", checksum(numbers[::101]))
print("table", len(table), checksum(sorted(table.items())[::53]))
print("blocks", len(blocks), checksum(blocks))
print("buffer", len(buffer), checksum([bytes(buffer)]))
print("OK objects")
