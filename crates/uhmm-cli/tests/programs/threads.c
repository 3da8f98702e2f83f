// Four threads read, write and verify random pages; none of their updates may be lost.
//
// Word 0 of each page is a counter that any thread adds to at any time. The other words hold the
// pattern of the page's generation, and a lock lets one thread at a time rewrite them.

#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { THREADS = 4, STEPS = 50000 };

static char *memory;
static size_t pages;
static atomic_flag *locks;
static uint32_t *generations;

static void *worker(void *argument) {
    uint64_t random = (uintptr_t)argument + 1;
    for (int step = 0; step < STEPS; step++) {
        uint64_t p = below(&random, pages);
        char *at = memory + p * PAGE;
        atomic_fetch_add_explicit((_Atomic uint64_t *)at, 1, memory_order_relaxed);

        p = below(&random, pages);
        at = memory + p * PAGE;
        if (atomic_flag_test_and_set_explicit(&locks[p], memory_order_acquire)) continue;
        check_words(at, 1, generations[p], p, "a thread reads");
        if (step % 3) {
            generations[p]++;
            for (unsigned i = 1; i < WORDS; i++)
                ((uint64_t *)at)[i] = word_of(generations[p], p, i);
        }
        atomic_flag_clear_explicit(&locks[p], memory_order_release);
    }
    return NULL;
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 256) * MIB / PAGE;
    must((memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0)) != MAP_FAILED);
    must(locks = calloc(pages, sizeof *locks));
    must(generations = calloc(pages, sizeof *generations));
    for (size_t p = 0; p < pages; p++) {
        fill_page(memory + p * PAGE, 0, p);
        *(uint64_t *)(memory + p * PAGE) = 0;
    }

    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        must(pthread_create(&threads[t], NULL, worker, (void *)t) == 0);
    for (int t = 0; t < THREADS; t++) must(pthread_join(threads[t], NULL) == 0);

    uint64_t added = 0;
    for (size_t p = 0; p < pages; p++) {
        check_words(memory + p * PAGE, 1, generations[p], p, "at the end");
        added += *(uint64_t *)(memory + p * PAGE);
    }
    if (added != (uint64_t)THREADS * STEPS)
        fail("%d additions, and the counters hold %llu", THREADS * STEPS, (unsigned long long)added);
    puts("OK threads");
}
