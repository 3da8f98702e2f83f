// fork: both sides see the memory of that moment, whatever state each page was in, and go on
// changing their own.

#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

static char *at;
static size_t pages;

static void wait_for(pid_t child) {
    int status;
    must(waitpid(child, &status, 0) == child);
    if (status != 0) fail("child %d ended with status %x", (int)child, status);
}

// Four kinds of page: filled, dropped, never touched, filled again lately.
static uint64_t seed_of(size_t p) { return p % 4 == 3 ? 2 : 1; }

static void prepare(void) {
    must(madvise(at, pages * PAGE, MADV_DONTNEED) == 0);
    for (size_t p = 0; p < pages; p++)
        if (p % 4 != 2) fill_page(at + p * PAGE, 1, p);
    for (size_t p = 1; p < pages; p += 4) must(madvise(at + p * PAGE, PAGE, MADV_DONTNEED) == 0);
    for (size_t p = 3; p < pages; p += 4) fill_page(at + p * PAGE, 2, p);
}

static void check_prepared(const char *what) {
    for (size_t p = 0; p < pages; p++) {
        if (p % 4 == 1 || p % 4 == 2) check_zero(at + p * PAGE, p, what);
        else check_page(at + p * PAGE, seed_of(p), p, what);
    }
}

// Writes every third page, checks all, and the other way round.
static void go_own_way(uint64_t seed, const char *what) {
    for (size_t p = 0; p < pages; p += 3) fill_page(at + p * PAGE, seed, p);
    for (size_t p = 0; p < pages; p++) {
        if (p % 3 == 0) check_page(at + p * PAGE, seed, p, what);
        else if (p % 4 == 1 || p % 4 == 2) check_zero(at + p * PAGE, p, what);
        else check_page(at + p * PAGE, seed_of(p), p, what);
    }
    fill(at, pages, seed, 0);
    check(at, pages, seed, 0, what);
}

static void siblings(void) {
    prepare();
    pid_t children[3];
    for (uint64_t i = 0; i < 3; i++) {
        must((children[i] = fork()) >= 0);
        if (children[i] == 0) {
            if (i != 1) check_prepared("a child");
            go_own_way(100 + i, "a child's own");
            if (i == 2) {
                pid_t grandchild = fork();
                must(grandchild >= 0);
                if (grandchild == 0) {
                    check(at, pages, 102, 0, "a grandchild");
                    fill(at, pages, 200, 0);
                    check(at, pages, 200, 0, "a grandchild's own");
                    _exit(0);
                }
                fill(at, pages / 2, 103, 0);
                wait_for(grandchild);
                check(at, pages / 2, 103, 0, "a child after its child");
                check(at + pages / 2 * PAGE, pages - pages / 2, 102, pages / 2, "the same, rest");
            }
            _exit(0);
        }
    }
    check_prepared("the parent");
    go_own_way(3, "the parent's own");
    for (int i = 0; i < 3; i++) wait_for(children[i]);
    check(at, pages, 3, 0, "the parent at the end");
}

// Threads add to the first word of a pair and then to the second, on pages far apart, while
// another forks. A snapshot of one moment has them equal, or one apart in one pair a thread.
enum { THREADS = 2, PAIRS = 4096, FORKS = 12 };

static atomic_bool stop;

static _Atomic uint64_t *half(size_t thread, size_t pair, int second) {
    size_t page = (second ? THREADS * PAIRS : 0) + thread * PAIRS + pair;
    return (_Atomic uint64_t *)(at + page * PAGE);
}

static void *add(void *argument) {
    size_t thread = (uintptr_t)argument;
    uint64_t random = thread + 1;
    while (!atomic_load(&stop)) {
        size_t pair = below(&random, PAIRS);
        atomic_fetch_add(half(thread, pair, 0), 1);
        atomic_fetch_add(half(thread, pair, 1), 1);
    }
    return NULL;
}

static void check_snapshot(void) {
    for (size_t thread = 0; thread < THREADS; thread++) {
        int apart = 0;
        for (size_t pair = 0; pair < PAIRS; pair++) {
            uint64_t first = atomic_load(half(thread, pair, 0));
            uint64_t second = atomic_load(half(thread, pair, 1));
            if (first == second) continue;
            if (first != second + 1 || ++apart > 1)
                fail("pages of pair %zu of thread %zu (%p, %p) are of different moments: "
                     "%llu and %llu, the %dth pair apart",
                     pair, thread, (void *)half(thread, pair, 0), (void *)half(thread, pair, 1),
                     (unsigned long long)first, (unsigned long long)second, apart);
        }
    }
}

static void among_threads(void) {
    if (pages < 2 * THREADS * PAIRS) fail("wants at least %d MiB", 2 * THREADS * PAIRS / 256);
    must(madvise(at, pages * PAGE, MADV_DONTNEED) == 0);
    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        must(pthread_create(&threads[t], NULL, add, (void *)t) == 0);
    for (int i = 0; i < FORKS; i++) {
        usleep(20000);
        pid_t child = fork();
        must(child >= 0);
        if (child == 0) {
            check_snapshot();
            fill(at, 2 * THREADS * PAIRS, 300, 0);
            check(at, 2 * THREADS * PAIRS, 300, 0, "a child of threads");
            _exit(0);
        }
        wait_for(child);
    }
    atomic_store(&stop, 1);
    for (int t = 0; t < THREADS; t++) must(pthread_join(threads[t], NULL) == 0);
    for (size_t t = 0; t < THREADS; t++)
        for (size_t pair = 0; pair < PAIRS; pair++)
            if (atomic_load(half(t, pair, 0)) != atomic_load(half(t, pair, 1)))
                fail("pair %zu of thread %zu at the end", pair, t);
}

// A thread forks whose stack is managed, while other such threads and open files are cold: the C
// library has its own data there, and uses it in the child before anything else runs.
enum { SLEEPERS = 8, FILES = 200, STACK = 1 * MIB };

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

static void *sleeper(void *argument) {
    must(pthread_mutex_lock(&held) == 0);
    must(pthread_mutex_unlock(&held) == 0);
    return argument;
}

static void *forker(void *argument) {
    FILE **files = argument;
    for (uint64_t i = 0; i < 4; i++) {
        fill(at, pages, 500 + i, 0); // presses the files and the other stacks out
        pid_t child = fork();
        must(child >= 0);
        if (child == 0) {
            for (int f = 0; f < FILES; f++) must(fprintf(files[f], "%d", f) > 0);
            must(fflush(NULL) == 0);
            check(at, pages, 500 + i, 0, "a child of a thread on a managed stack");
            _exit(0);
        }
        wait_for(child);
    }
    return NULL;
}

static void run_on_own_stack(pthread_t *thread, void *(*run)(void *), void *argument) {
    void *stack =
        mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    must(stack != MAP_FAILED && pthread_attr_init(&attributes) == 0);
    must(pthread_attr_setstack(&attributes, stack, STACK) == 0);
    must(pthread_create(thread, &attributes, run, argument) == 0);
}

static void cold_corners(void) {
    static FILE *files[FILES];
    for (int i = 0; i < FILES; i++) must(files[i] = fopen("/dev/null", "w"));
    pthread_t sleepers[SLEEPERS], thread;
    must(pthread_mutex_lock(&held) == 0);
    for (int i = 0; i < SLEEPERS; i++) run_on_own_stack(&sleepers[i], sleeper, NULL);
    run_on_own_stack(&thread, forker, files);
    must(pthread_join(thread, NULL) == 0);
    must(pthread_mutex_unlock(&held) == 0);
    for (int i = 0; i < SLEEPERS; i++) must(pthread_join(sleepers[i], NULL) == 0);
    for (int i = 0; i < FILES; i++) must(fclose(files[i]) == 0);
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 96) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    siblings();
    among_threads();
    cold_corners();

    // A chain: each process forks the next, and each adds a page of its own.
    fill(at, pages, 4, 0);
    for (uint64_t depth = 0; depth < 8; depth++) {
        pid_t child = fork();
        must(child >= 0);
        if (child) {
            wait_for(child);
            check(at + 8 * PAGE, pages - 8, 4, 8, "a chain, on the way back");
            if (depth) _exit(0);
            puts("OK fork");
            return 0;
        }
        fill_page(at + depth * PAGE, 400 + depth, depth);
        for (uint64_t d = 0; d <= depth; d++)
            check_page(at + d * PAGE, 400 + d, d, "a chain");
    }
    check(at + 8 * PAGE, pages - 8, 4, 8, "the end of a chain");
    _exit(0);
}
