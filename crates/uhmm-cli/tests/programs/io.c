// System calls whose buffers are cold: the kernel itself takes the faults. None may return EFAULT
// or a short count that a plain run would not, and every byte arrives.

#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static char *at;
static size_t pages;

// Pushes everything out by walking a mapping larger than RAM.
static void press(void) {
    static char *other;
    if (!other)
        must((other = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                           -1, 0)) != MAP_FAILED);
    for (size_t p = 0; p < pages; p++) other[p * PAGE]++;
}

static void files(int flags) {
    char name[] = "/var/tmp/uhmm-io-XXXXXX";
    int file = mkstemp(name);
    must(file >= 0);
    if (flags) {
        must(close(file) == 0);
        file = open(name, O_RDWR | flags);
        if (file < 0 && errno == EINVAL) return (void)unlink(name); // not on this file system
        must(file >= 0);
    }
    must(unlink(name) == 0);
    fill(at, pages, 1, 0);
    press();
    for (size_t done = 0; done < pages * PAGE;) {
        ssize_t wrote = write(file, at + done, pages * PAGE - done);
        if (wrote <= 0) fail("write at page %zu: %s", done / PAGE, strerror(errno));
        done += wrote;
    }
    check(at, pages, 1, 0, "after write");
    must(madvise(at, pages / 2 * PAGE, MADV_DONTNEED) == 0); // half never touched, half cold
    press();
    must(lseek(file, 0, SEEK_SET) == 0);
    for (size_t done = 0; done < pages * PAGE;) {
        ssize_t got = read(file, at + done, pages * PAGE - done);
        if (got <= 0) fail("read at page %zu: %s", done / PAGE, strerror(errno));
        done += got;
    }
    check(at, pages, 1, 0, "after read");

    // Scattered: every other page of a range, in one call.
    enum { PARTS = 256 };
    struct iovec parts[PARTS];
    for (size_t i = 0; i < PARTS; i++) parts[i] = (struct iovec){at + 2 * i * PAGE, PAGE};
    press();
    if (pwritev(file, parts, PARTS, 0) != PARTS * PAGE) fail("pwritev: %s", strerror(errno));
    fill(at, pages, 2, 0);
    press();
    if (preadv(file, parts, PARTS, 0) != PARTS * PAGE) fail("preadv: %s", strerror(errno));
    for (size_t p = 0; p < 2 * PARTS; p++)
        check_page(at + p * PAGE, p % 2 ? 2 : 1, p, "after preadv");
    must(close(file) == 0);
}

struct stream {
    int end;
    size_t pages;
};

static void *send_all(void *argument) {
    struct stream *stream = argument;
    for (size_t done = 0; done < stream->pages * PAGE;) {
        ssize_t sent = write(stream->end, at + done, stream->pages * PAGE - done);
        if (sent <= 0) fail("sending page %zu: %s", done / PAGE, strerror(errno));
        done += sent;
    }
    return NULL;
}

// From one half of the memory to the other, through a pipe or a socket.
static void stream(int ends[2], const char *what) {
    size_t half = pages / 2;
    fill(at, half, 3, 0);
    fill(at + half * PAGE, half, 4, 0);
    press();
    struct stream out = {ends[1], half};
    pthread_t sender;
    must(pthread_create(&sender, NULL, send_all, &out) == 0);
    for (size_t done = 0; done < half * PAGE;) {
        ssize_t got = read(ends[0], at + half * PAGE + done, half * PAGE - done);
        if (got <= 0) fail("%s: receiving page %zu: %s", what, done / PAGE, strerror(errno));
        done += got;
    }
    must(pthread_join(sender, NULL) == 0);
    check(at + half * PAGE, half, 3, 0, what);
    must(close(ends[0]) == 0 && close(ends[1]) == 0);
}

// Small structures and strings that the kernel reads or writes, each on a cold page of its own.
static void small(void) {
    fill(at, 64, 5, 0);
    char *path = strcpy(at, "/proc/self/status");
    struct stat *stat_at = (struct stat *)(at + 1 * PAGE);
    struct timespec *time = (struct timespec *)(at + 2 * PAGE);
    struct pollfd *poll_at = (struct pollfd *)(at + 3 * PAGE);
    char *directory = at + 4 * PAGE, *link = at + 5 * PAGE;
    strcpy(link, "/proc/self/exe");
    press();
    must(stat(path, stat_at) == 0 && S_ISREG(stat_at->st_mode));
    press();
    int file = open(path, O_RDONLY);
    must(file >= 0);
    *poll_at = (struct pollfd){.fd = file, .events = POLLIN};
    press();
    must(poll(poll_at, 1, 0) >= 0 && close(file) == 0);
    must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, time) == 0 && time->tv_sec >= 0);
    must(getcwd(directory, PAGE) == directory);
    press();
    must(readlink(link, at + 6 * PAGE, PAGE) > 0);
    must(getrandom(at + 7 * PAGE, 4 * PAGE, 0) == 4 * PAGE);
    check(at + 11 * PAGE, 53, 5, 11, "beside small structures");
    press();

    // The kernel reads memory of one process for another.
    struct iovec here = {at + 20 * PAGE, 8 * PAGE}, there = {at + 40 * PAGE, 8 * PAGE};
    ssize_t copied = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (copied == 8 * PAGE) check(at + 20 * PAGE, 8, 5, 40, "after process_vm_readv");
    else if (copied >= 0 || errno == EFAULT) fail("process_vm_readv: %zd", copied);
    char *volatile bad = (char *)8;
    if (write(STDOUT_FILENO, bad, 1) != -1 || errno != EFAULT) fail("write of a bad address");
}

// Closes every descriptor, as daemons do, and uses every number for a file, while memory is in all
// states.
static void descriptors(void) {
    fill(at, pages, 6, 0);
    for (int fd = 3; fd < 1024; fd++) close(fd);
    must(close_range(3, ~0U, 0) == 0);
    check(at, pages, 6, 0, "after closing everything");
    closefrom(3);
    fill(at, pages, 7, 0);
    int file = open("/proc/self/exe", O_RDONLY);
    must(file == 3);
    for (int fd = 4; fd < 1024; fd++) dup2(file, fd);
    check(at, pages, 7, 0, "with a file under every number");
    must(mprotect(at, pages / 2 * PAGE, PROT_READ) == 0);
    press();
    check(at, pages, 7, 0, "read-only, with a file under every number");
    must(mprotect(at, pages / 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
    must(close_range(3, 899, 0) == 0 && close_range(900, ~0U, 0) == 0);
    errno = 0;
    must(close_range(5, 4, 0) == -1 && errno == EINVAL);
    check(at, pages, 7, 0, "after closing everything again");
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 64) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    files(0);
    files(O_DIRECT);
    int ends[2];
    must(pipe(ends) == 0);
    stream(ends, "through a pipe");
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    stream(ends, "through a socket");
    small();
    descriptors();
    puts("OK io");
}
