// madvise: what it promises about content, for pages in RAM and pages on a device.

#include "faulting.h"
#include <sys/mman.h>
#include <sys/wait.h>

static char *at;
static size_t pages;

static void child_must(void (*act)(void), const char *what) {
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        act();
        _exit(0);
    }
    int status;
    must(waitpid(child, &status, 0) == child);
    if (status != 0) fail("%s: the child ended with status %x", what, status);
}

static void first_quarter_is_zero(void) {
    check_zeros(at, pages / 4, "wiped on fork");
    check(at + pages / 4 * PAGE, pages / 4, 3, pages / 4, "beside what is wiped");
}

static void first_quarter_is_absent(void) {
    catch_faults();
    expect_fault(at + 3 * PAGE, 0, SIGSEGV, SEGV_MAPERR, "not copied to the child");
    check(at + pages / 4 * PAGE, pages / 4, 3, pages / 4, "beside what is not copied");
}

// Advice that may not change a byte.
static void content_stays(void) {
    static const int advice[] = {MADV_COLD,     MADV_PAGEOUT,    MADV_WILLNEED,   MADV_RANDOM,
                                 MADV_HUGEPAGE, MADV_SEQUENTIAL, MADV_NOHUGEPAGE, MADV_NORMAL,
                                 MADV_DONTDUMP, MADV_DODUMP};
    for (size_t i = 0; i < sizeof advice / sizeof *advice; i++) {
        char what[64];
        snprintf(what, sizeof what, "after madvise %d", advice[i]);
        // A kernel may be built without some of them; none may do harm.
        if (madvise(at, pages / 2 * PAGE, advice[i]) != 0 && errno != EINVAL)
            fail("%s: %s", what, strerror(errno));
        check(at, pages / 2, 3, 0, what);
    }
}

static void dropping(void) {
    // Scattered single pages, then large ranges.
    for (size_t p = 0; p < pages; p += 5) must(madvise(at + p * PAGE, PAGE, MADV_DONTNEED) == 0);
    for (size_t p = 0; p < pages; p++) {
        if (p % 5) check_page(at + p * PAGE, 1, p, "beside a dropped page");
        else check_zero(at + p * PAGE, p, "a dropped page");
    }
    must(madvise(at, pages * PAGE, MADV_DONTNEED) == 0);
    check_zeros(at, pages, "all dropped");
    fill(at, pages, 2, 0);
    check(at, pages, 2, 0, "filled again");

    // MADV_FREE: each page keeps what it had or becomes zero, and a write after it always counts.
    must(madvise(at, pages * PAGE, MADV_FREE) == 0);
    for (size_t p = 0; p < pages; p += 2) fill_page(at + p * PAGE, 3, p);
    for (size_t p = 0; p < pages; p++) {
        uint64_t *words = (uint64_t *)(at + p * PAGE);
        if (p % 2 == 0) check_page(words, 3, p, "written after MADV_FREE");
        else if (words[0] == 0) check_zero(words, p, "freed");
        else check_page(words, 2, p, "freed, and kept");
    }
    fill(at, pages, 3, 0);
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 128) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    fill(at, pages, 1, 0);
    dropping();
    content_stays();

    if (madvise(at, pages / 4 * PAGE, MADV_WIPEONFORK) == 0) {
        child_must(first_quarter_is_zero, "MADV_WIPEONFORK");
        check(at, pages, 3, 0, "wiped in the child only");
        must(madvise(at, pages / 4 * PAGE, MADV_KEEPONFORK) == 0);
    }
    must(madvise(at, pages / 4 * PAGE, MADV_DONTFORK) == 0);
    child_must(first_quarter_is_absent, "MADV_DONTFORK");
    check(at, pages, 3, 0, "absent in the child only");
    must(madvise(at, pages / 4 * PAGE, MADV_DOFORK) == 0);

    if (madvise(at + 1, PAGE, MADV_DONTNEED) != -1 || errno != EINVAL)
        fail("madvise of an odd address");
    must(munmap(at, PAGE) == 0);
    if (madvise(at, 2 * PAGE, MADV_DONTNEED) != -1 || errno != ENOMEM) fail("madvise over a hole");
    puts("OK madvise");
}
