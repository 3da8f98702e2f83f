// mmap and munmap: holes, fixed addresses, large reservations, and mappings that are not ours.

#include "faulting.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS };

static char *map(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);
    must(at != MAP_FAILED);
    return at;
}

// Punches holes into a full mapping, checks what is left, and maps into the holes again.
static void holes(size_t pages) {
    enum { HOLE = 48, STEP = 128 };
    char *at = map(pages);
    check_zeros(at, pages, "fresh memory");
    fill(at, pages, 1, 0);
    for (size_t p = 0; p + STEP <= pages; p += STEP) must(munmap(at + p * PAGE, HOLE * PAGE) == 0);
    for (size_t p = 0; p + STEP <= pages; p += STEP)
        check(at + (p + HOLE) * PAGE, STEP - HOLE, 1, p + HOLE, "beside a hole");
    expect_fault(at + 5 * PAGE + 7, 0, SIGSEGV, SEGV_MAPERR, "a hole");
    expect_fault(at + STEP * PAGE, 1, SIGSEGV, SEGV_MAPERR, "a hole");

    for (size_t p = 0; p + STEP <= pages; p += STEP) {
        char *hole = at + p * PAGE;
        must(mmap(hole, HOLE * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == hole);
        check_zeros(hole, HOLE, "mapped into a hole");
        fill(hole, HOLE, 2, p);
    }
    if (mmap(at, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED || errno != EEXIST)
        fail("MAP_FIXED_NOREPLACE over a mapping");
    for (size_t p = 0; p + STEP <= pages; p += STEP) {
        check(at + p * PAGE, HOLE, 2, p, "in a hole");
        check(at + (p + HOLE) * PAGE, STEP - HOLE, 1, p + HOLE, "beside a filled hole");
    }

    // MAP_FIXED over live memory: it reads as zero, and nothing of the old content comes back.
    must(mmap(at, pages / 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == at);
    check_zeros(at, pages / 2, "mapped over live memory");
    must(munmap(at, pages * PAGE) == 0);
    expect_fault(at + pages / 2 * PAGE, 0, SIGSEGV, SEGV_MAPERR, "unmapped memory");
}

// Memory that is unmapped and mapped again many times never shows what it held.
static void churn(void) {
    enum { MAPS = 256, ROUNDS = 40 };
    char *maps[MAPS];
    size_t sizes[MAPS];
    uint64_t random = 3;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MAPS; i++) {
            if (round > 0 && (i + round) % 3) continue;
            if (round > 0) {
                check(maps[i], sizes[i], 10, i, "a mapping before it goes");
                must(munmap(maps[i], sizes[i] * PAGE) == 0);
            }
            sizes[i] = 1 + below(&random, 192);
            maps[i] = map(sizes[i]);
            check_zeros(maps[i], sizes[i], "memory mapped again");
            fill(maps[i], sizes[i], 10, i);
        }
    }
    for (int i = 0; i < MAPS; i++) {
        check(maps[i], sizes[i], 10, i, "a mapping at the end");
        must(munmap(maps[i], sizes[i] * PAGE) == 0);
    }
}

// As language runtimes do: reserve much more than there is, then open up parts of it.
static void reservation(size_t pages) {
    size_t reserved = (size_t)256 << 30;
    char *at = mmap(NULL, reserved, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    must(at != MAP_FAILED);
    size_t stride = reserved / 64, part = pages / 64;
    for (size_t i = 0; i < 64; i++) {
        must(mprotect(at + i * stride, part * PAGE, RW) == 0);
        fill(at + i * stride, part, 20 + i, 0);
    }
    expect_fault(at + part * PAGE, 1, SIGSEGV, SEGV_ACCERR, "reserved memory");
    for (size_t i = 0; i < 64; i++) check(at + i * stride, part, 20 + i, 0, "part of a reservation");
    must(munmap(at, reserved) == 0);
}

// Files, and memory shared between processes, beside private memory under pressure.
static void others(size_t pages) {
    char name[] = "/tmp/uhmm-mmap-XXXXXX";
    int file = mkstemp(name);
    must(file >= 0 && unlink(name) == 0);
    char *buffer = map(pages);
    fill(buffer, pages, 30, 0);
    for (size_t done = 0; done < 64 * PAGE;) {
        ssize_t wrote = write(file, buffer + done, 64 * PAGE - done);
        must(wrote > 0);
        done += wrote;
    }
    char *private = mmap(NULL, 64 * PAGE, RW, MAP_PRIVATE, file, 0);
    char *shared = mmap(NULL, 64 * PAGE, RW, MAP_SHARED, file, 0);
    char *common = mmap(NULL, 64 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(private != MAP_FAILED && shared != MAP_FAILED && common != MAP_FAILED);
    fill(private, 32, 31, 0);
    check(shared, 64, 30, 0, "a file, unharmed by a private mapping");
    fill(shared + 32 * PAGE, 32, 32, 32);

    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        fill(common, 64, 33, 0);
        check(buffer, pages, 30, 0, "private memory in a child");
        _exit(0);
    }
    int status;
    must(waitpid(child, &status, 0) == child);
    if (status != 0) fail("the child ended with status %x", status);
    check(common, 64, 33, 0, "memory shared with a child");
    check(private, 32, 31, 0, "a private mapping of a file");
    check(private + 32 * PAGE, 32, 32, 32, "an untouched private mapping of a file");
    check(buffer, pages, 30, 0, "private memory");
    must(ftruncate(file, 16 * PAGE) == 0);
    expect_fault(shared + 20 * PAGE, 0, SIGBUS, BUS_ADRERR, "a truncated file");
    must(munmap(private, 64 * PAGE) == 0 && munmap(shared, 64 * PAGE) == 0);
    must(munmap(common, 64 * PAGE) == 0 && munmap(buffer, pages * PAGE) == 0);
    must(close(file) == 0);
}

static void refused(void) {
    if (mmap(NULL, 0, RW, ANON, -1, 0) != MAP_FAILED || errno != EINVAL) fail("mmap of no bytes");
    if (mmap(NULL, (size_t)1 << 62, RW, ANON, -1, 0) != MAP_FAILED || errno != ENOMEM)
        fail("mmap of more than the address space");
    if (munmap((char *)PAGE + 1, PAGE) != -1 || errno != EINVAL) fail("munmap of an odd address");
    if (mmap(NULL, PAGE, RW, MAP_PRIVATE, -1, 0) != MAP_FAILED || errno != EBADF)
        fail("mmap of no file");
}

int main(int argc, char **argv) {
    size_t pages = mib_wanted(argc, argv, 128) * MIB / PAGE;
    catch_faults();
    refused();
    holes(pages);
    churn();
    reservation(pages);
    others(pages);

    char *populated = mmap(NULL, 512 * PAGE, RW, ANON | MAP_POPULATE, -1, 0);
    must(populated != MAP_FAILED);
    check_zeros(populated, 512, "populated memory");
    fill(populated, 512, 40, 0);
    check(populated, 512, 40, 0, "populated memory");
    puts("OK mmap");
}
