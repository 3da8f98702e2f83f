// mlock: what is locked keeps its content, and can be unlocked, moved, protected and freed as usual.

#include "check.h"
#include <sys/mman.h>

enum { RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS };

int main(int argc, char **argv) {
    size_t pages = mib_wanted(argc, argv, 128) * MIB / PAGE, part = pages / 16;
    char *at = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);
    must(at != MAP_FAILED);
    fill(at, pages, 1, 0);

    // Cold pages and fresh ones become locked; the rest is walked while they are.
    must(mlock(at, part * PAGE) == 0);
    check(at, pages, 1, 0, "with a part locked");
    fill(at + part * PAGE, pages - part, 2, part);
    check(at, part, 1, 0, "locked");
    must(munlock(at, part * PAGE) == 0);
    fill(at, part, 3, 0);
    check(at, part, 3, 0, "unlocked");
    check(at + part * PAGE, pages - part, 2, part, "beside what was locked");

    char *fresh = mmap(NULL, part * PAGE, RW, ANON | MAP_LOCKED, -1, 0);
    must(fresh != MAP_FAILED);
    check_zeros(fresh, part, "mapped locked");
    fill(fresh, part, 4, 0);
    if (mlock2(at, part * PAGE, MLOCK_ONFAULT) == 0) check(at, part, 3, 0, "locked on fault");
    else if (errno != ENOSYS) fail("mlock2: %s", strerror(errno));
    check(at + part * PAGE, pages - part, 2, part, "beside all that is locked");

    // Locked memory goes away like any other, and what comes after it is not locked.
    must(munmap(fresh, part / 2 * PAGE) == 0);
    check(fresh + part / 2 * PAGE, part - part / 2, 4, part / 2, "half unmapped");
    must(munlockall() == 0);
    for (uint64_t round = 0; round < 3; round++) {
        fill(at, pages, 5 + round, 0);
        check(at, pages, 5 + round, 0, "after munlockall");
    }
    if (mlock((void *)PAGE, PAGE) != -1 || errno != ENOMEM) fail("mlock of a hole");
    puts("OK mlock");
}
