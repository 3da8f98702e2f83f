// Every way for a program to end, with its memory out on a device: exits MODE [MIB].

#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

static char *at;
static size_t pages;

static void at_exit(void) {
    check(at, pages, 1, 0, "in an exit handler");
    puts("exit handler");
    fflush(stdout);
}

__attribute__((destructor)) static void destroyed(void) {
    if (!at) return;
    check(at, pages, 1, 0, "in a destructor");
    puts("destructor");
    fflush(stdout);
}

static void *touch_for_ever(void *argument) {
    for (;;) check(at, pages, 1, 0, "while the program ends");
    return argument;
}

static void *end_all(void *argument) {
    usleep(50000);
    exit(21);
    return argument;
}

static void *finish_last(void *argument) {
    usleep(50000);
    check(at, pages, 1, 0, "after main has gone");
    puts("last thread");
    return argument;
}

static void in_thread(void *(*run)(void *)) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, run, NULL) == 0);
}

int main(int argc, char **argv) {
    must(argc > 1);
    const char *mode = argv[1];
    pages = mib_wanted(argc - 1, argv + 1, 48) * MIB / PAGE;
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    fill(at, pages, 1, 0);
    check(at, pages / 4, 1, 0, "before the end");
    must(atexit(at_exit) == 0);
    must(at_quick_exit(at_exit) == 0);
    printf("%s\n", mode);
    fflush(stdout);

    if (!strcmp(mode, "return")) return 11;
    if (!strcmp(mode, "exit")) exit(12);
    if (!strcmp(mode, "_exit")) _exit(13);
    if (!strcmp(mode, "quick_exit")) quick_exit(14);
    if (!strcmp(mode, "abort")) abort();
    if (!strcmp(mode, "trap")) __builtin_trap();
    char *volatile nowhere = (char *)8;
    if (!strcmp(mode, "null")) *nowhere = 1;
    if (!strcmp(mode, "overflow")) {
        // A write past a mapping that is partly on a device: a plain crash, nothing more.
        must(munmap(at + (pages - 1) * PAGE, PAGE) == 0);
        at[(pages - 1) * PAGE] = 1;
    }
    if (!strncmp(mode, "kill", 4)) {
        must(kill(getpid(), atoi(mode + 4)) == 0);
        for (;;) pause();
    }
    if (!strcmp(mode, "thread")) {
        in_thread(touch_for_ever);
        in_thread(end_all);
        for (;;) pause();
    }
    if (!strcmp(mode, "pthread_exit")) {
        in_thread(finish_last);
        pthread_exit(NULL);
    }
    if (!strcmp(mode, "crowd")) {
        for (int i = 0; i < 4; i++) in_thread(touch_for_ever);
        usleep(50000);
        raise(SIGTERM);
    }
    fail("no mode %s", mode);
}
