// Thread stacks in managed memory: the kernel pushes signal frames on them, and they go cold
// while their threads sleep.

#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { THREADS = 16, STACK = 4 * MIB, ROUNDS = 3 };

static pthread_barrier_t barrier;
static char *at;
static size_t pages;
static atomic_int handled;

static void on_signal(int signal) {
    (void)signal;
    handled++;
}

// Descends with a page of pattern in each frame, sleeps at the bottom, and checks on the way up.
static void descend(uint64_t seed, uint64_t depth) {
    uint64_t page[WORDS];
    fill_page(page, seed, depth);
    __asm__ volatile("" : : "r"(page) : "memory");
    if (depth > 0) {
        descend(seed, depth - 1);
    } else {
        pthread_barrier_wait(&barrier); // the main thread presses the stacks out
        pthread_barrier_wait(&barrier);
        must(pthread_kill(pthread_self(), SIGUSR1) == 0);
    }
    check_page(page, seed, depth, "a frame of a cold stack");
}

static void *worker(void *argument) {
    for (int round = 0; round < ROUNDS; round++) descend((uintptr_t)argument, 700);
    return NULL;
}

// Stacks that the program switches by itself, as coroutine libraries do.
static ucontext_t main_context, contexts[64];

static void coroutine(int number) {
    uint64_t page[WORDS];
    fill_page(page, number, 0);
    __asm__ volatile("" : : "r"(page) : "memory");
    swapcontext(&contexts[number], &main_context);
    check_page(page, number, 0, "a coroutine's stack");
}

static void start(int number) {
    ucontext_t *context = &contexts[number];
    must(getcontext(context) == 0);
    context->uc_stack.ss_sp = malloc(64 * 1024);
    context->uc_stack.ss_size = 64 * 1024;
    context->uc_link = &main_context;
    must(context->uc_stack.ss_sp);
    makecontext(context, (void (*)(void))coroutine, 1, number);
    must(swapcontext(&main_context, context) == 0);
}

static void coroutines(void) {
    for (int i = 0; i < 64; i++) start(i);
    fill(at, pages, 9, 0);
    for (int i = 0; i < 64; i++) must(swapcontext(&main_context, &contexts[i]) == 0);
    check(at, pages, 9, 0, "beside coroutines");
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 96) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    must(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL) == 0);
    must(pthread_barrier_init(&barrier, NULL, THREADS + 1) == 0);

    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++) {
        void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        must(stack != MAP_FAILED);
        pthread_attr_t attributes;
        must(pthread_attr_init(&attributes) == 0);
        must(pthread_attr_setstack(&attributes, stack, STACK) == 0);
        must(pthread_create(&threads[t], &attributes, worker, (void *)(t + 1)) == 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&barrier);
        fill(at, pages, round, 0);
        check(at, pages, round, 0, "beside stacks");
        pthread_barrier_wait(&barrier);
    }
    for (int t = 0; t < THREADS; t++) must(pthread_join(threads[t], NULL) == 0);
    if (handled != THREADS * ROUNDS) fail("%d of %d signals", handled, THREADS * ROUNDS);
    coroutines();
    puts("OK stacks");
}
