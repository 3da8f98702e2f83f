// Signals: handlers that touch memory of every kind, on stacks of every kind, while the program
// itself faults.

#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/time.h>

static char *at;
static size_t pages;
static atomic_int ticks, pokes, jumps;
static sigjmp_buf back;

// Checks one page and rewrites another; both are the handler's own half of the memory.
static void touch(uint64_t *random, size_t from, size_t count) {
    size_t p = from + below(random, count);
    check_page(at + p * PAGE, 1, p, "in a handler");
    p = from + below(random, count);
    fill_page(at + p * PAGE, 1, p);
}

static void on_tick(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    static uint64_t random = 5;
    int kept = errno;
    for (int i = 0; i < 4; i++) touch(&random, pages / 2, pages / 2);
    ticks++;
    errno = kept;
}

static void on_poke(int signal) {
    (void)signal;
    pokes++;
}

static void on_fault(int signal) {
    (void)signal;
    jumps++;
    siglongjmp(back, 1);
}

static char *map(size_t bytes, int protection) {
    char *memory = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    return memory;
}

static void install(int signal, struct sigaction action) {
    must(sigaction(signal, &action, NULL) == 0);
}

// Faults must be served however many signals a thread has blocked.
static void *all_blocked(void *argument) {
    sigset_t all;
    sigfillset(&all);
    must(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    size_t count = pages / 4;
    check(at, count, 1, 0, "with every signal blocked");
    fill(at, count, 1, 0);
    return argument;
}

static void *sleeper(void *argument) {
    atomic_int *awake = argument;
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR2);
    int got;
    must(sigwait(&wanted, &got) == 0);
    atomic_store(awake, got == SIGUSR2);
    return NULL;
}

int main(int argc, char **argv) {
    pages = mib_wanted(argc, argv, 128) * MIB / PAGE;
    at = map(pages * PAGE, PROT_READ | PROT_WRITE);
    fill(at, pages, 1, 0);

    // The handlers' stack is heap memory, which is cold by the time it is used.
    size_t size = 256 * 1024;
    stack_t stack = {.ss_sp = malloc(size), .ss_size = size};
    must(stack.ss_sp && sigaltstack(&stack, NULL) == 0);
    install(SIGALRM,
            (struct sigaction){.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART});
    install(SIGUSR1, (struct sigaction){.sa_handler = on_poke, .sa_flags = SA_RESTART});
    install(SIGSEGV, (struct sigaction){.sa_handler = on_fault, .sa_flags = SA_ONSTACK});

    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGUSR2);
    must(pthread_sigmask(SIG_BLOCK, &only, NULL) == 0);
    atomic_int awake = 0;
    pthread_t waiting, blocked;
    must(pthread_create(&waiting, NULL, sleeper, &awake) == 0);
    must(pthread_create(&blocked, NULL, all_blocked, NULL) == 0);

    struct itimerval every_ms = {{0, 1000}, {0, 1000}};
    must(setitimer(ITIMER_REAL, &every_ms, NULL) == 0);
    char *wall = map(PAGE, PROT_NONE);
    uint64_t random = 6;
    for (int round = 0; round < 40000; round++) {
        size_t p = pages / 4 + below(&random, pages / 4);
        if (round % 2) fill_page(at + p * PAGE, 1, p);
        else check_page(at + p * PAGE, 1, p, "between signals");
        if (round % 100 == 0) must(raise(SIGUSR1) == 0);
        if (round % 200 == 0 && sigsetjmp(back, 1) == 0) {
            *(volatile char *)wall = 1;
            fail("a write to PROT_NONE did not fault");
        }
    }
    // Cold pages for the handler and long enough for it to be called.
    while (ticks < 100) check(at + pages / 4 * PAGE, 256, 1, pages / 4, "waiting for ticks");
    must(setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL) == 0);

    must(pthread_join(blocked, NULL) == 0);
    must(pthread_kill(waiting, SIGUSR2) == 0);
    must(pthread_join(waiting, NULL) == 0);
    if (!awake) fail("sigwait");
    if (pokes != 400 || jumps != 200) fail("%d of 400 pokes, %d of 200 jumps", pokes, jumps);
    check(at, pages, 1, 0, "at the end");

    // The sender's word: a value that comes along, read by the synchronous way.
    sigset_t queue;
    sigemptyset(&queue);
    sigaddset(&queue, SIGRTMIN);
    must(pthread_sigmask(SIG_BLOCK, &queue, NULL) == 0);
    must(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77}) == 0);
    siginfo_t *info = (siginfo_t *)at; // cold, and written by the kernel
    must(sigwaitinfo(&queue, info) == SIGRTMIN);
    if (info->si_value.sival_int != 77) fail("sigqueue: %d", info->si_value.sival_int);
    puts("OK signals");
}
