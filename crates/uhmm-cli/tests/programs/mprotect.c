// mprotect: protections hold, and content survives them, for pages in RAM and on a device.

#include "faulting.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { RW = PROT_READ | PROT_WRITE };

static char *at;
static size_t pages;
static volatile sig_atomic_t barriers;

// A garbage collector's write barrier: the first write to a page is a SIGSEGV, which opens it.
static void barrier(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    char *page = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
    if (info->si_code != SEGV_ACCERR || page < at || page >= at + pages * PAGE)
        fail("SIGSEGV with code %d at %p", info->si_code, info->si_addr);
    if (mprotect(page, PAGE, RW) != 0) fail("mprotect in a handler: %s", strerror(errno));
    barriers++;
}

static void write_barrier(void) {
    struct sigaction action = {.sa_sigaction = barrier, .sa_flags = SA_SIGINFO};
    must(sigaction(SIGSEGV, &action, NULL) == 0);
    enum { PART = 4096, STEP = 3 };
    must(mprotect(at, PART * PAGE, PROT_READ) == 0);
    int written = 0;
    for (size_t p = 0; p < PART; p += STEP, written++) fill_page(at + p * PAGE, 9, p);
    if (barriers != written) fail("%d pages written, %d barriers met", written, (int)barriers);
    for (size_t p = 0; p < PART; p++)
        check_page(at + p * PAGE, p % STEP ? 1 : 9, p, "behind a write barrier");
    must(mprotect(at, PART * PAGE, RW) == 0);
    fill(at, PART, 1, 0);
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 128) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    fill(at, pages, 1, 0);
    write_barrier();
    catch_faults();

    // Every fourth run of 16 pages unreadable, every fourth read-only.
    for (size_t p = 0; p + 64 <= pages; p += 64) {
        must(mprotect(at + p * PAGE, 16 * PAGE, PROT_NONE) == 0);
        must(mprotect(at + (p + 16) * PAGE, 16 * PAGE, PROT_READ) == 0);
    }
    for (size_t p = 0; p + 64 <= pages; p += 64) {
        if (p % 512 == 0) {
            expect_fault(at + (p + 3) * PAGE + 9, 0, SIGSEGV, SEGV_ACCERR, "PROT_NONE");
            expect_fault(at + (p + 3) * PAGE + 9, 1, SIGSEGV, SEGV_ACCERR, "PROT_NONE");
            expect_fault(at + (p + 19) * PAGE, 1, SIGSEGV, SEGV_ACCERR, "PROT_READ");
        }
        check(at + (p + 16) * PAGE, 48, 1, p + 16, "beside protected pages");
    }
    for (size_t p = 0; p + 64 <= pages; p += 64) {
        must(mprotect(at + p * PAGE, 32 * PAGE, RW) == 0);
        check(at + p * PAGE, 64, 1, p, "after protection");
        fill(at + p * PAGE, 32, 2, p);
    }

    // All of it unreadable for a while. A child inherits that, and may open its own.
    must(mprotect(at, pages * PAGE, PROT_NONE) == 0);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        expect_fault(at + 7 * PAGE, 0, SIGSEGV, SEGV_ACCERR, "PROT_NONE in a child");
        must(mprotect(at, 64 * PAGE, PROT_READ) == 0);
        check(at, 32, 2, 0, "opened by a child");
        _exit(0);
    }
    int status;
    must(waitpid(child, &status, 0) == child);
    if (status != 0) fail("the child ended with status %x", status);
    expect_fault(at, 0, SIGSEGV, SEGV_ACCERR, "PROT_NONE still, in the parent");
    must(mprotect(at, pages * PAGE, PROT_READ) == 0);
    for (size_t p = 0; p < pages; p++)
        check_page(at + p * PAGE, p % 64 < 32 ? 2 : 1, p, "opened for reading");
    expect_fault(at + PAGE, 1, SIGSEGV, SEGV_ACCERR, "opened for reading");
    must(mprotect(at, pages * PAGE, RW) == 0);
    fill(at, pages, 3, 0);
    check(at, pages, 3, 0, "opened for writing");

    // Code that the program writes itself.
    unsigned char *code = (unsigned char *)at;
#if defined(__x86_64__)
    static const unsigned char answer[] = {0xb8, 42, 0, 0, 0, 0xc3}; // mov eax, 42; ret
    memcpy(code, answer, sizeof answer);
    must(mprotect(code, PAGE, PROT_READ | PROT_EXEC) == 0);
    int (*call)(void) = (int (*)(void))(uintptr_t)code;
    if (call() != 42) fail("generated code");
#endif
    must(mprotect(code, PAGE, RW) == 0);
    if (mprotect(at + 1, PAGE, RW) != -1 || errno != EINVAL) fail("mprotect of an odd address");
    must(munmap(at + PAGE, PAGE) == 0);
    if (mprotect(at, 3 * PAGE, RW) != -1 || errno != ENOMEM) fail("mprotect over a hole");
    puts("OK mprotect");
}
