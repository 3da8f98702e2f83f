// dlopen: libraries come and go while memory is under pressure, and what they allocated stays.

#include "check.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

enum { ROUNDS = 40, MADE = 512 };

static char *plugin;
static char *made[ROUNDS];

static void *from_thread(void *argument) {
    void *(*make)(size_t, uint64_t) = (void *(*)(size_t, uint64_t))(uintptr_t)argument;
    void *block = make(64, 70);
    check(block, 64, 70, 0, "made in a thread");
    free(block);
    return NULL;
}

int main(int argc, char **argv) {
    must(argc > 1);
    plugin = argv[1];
    size_t pages = mib_wanted(argc - 1, argv + 1, 64) * MIB / PAGE;
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    fill(at, pages, 1, 0);

    for (int round = 0; round < ROUNDS; round++) {
        void *library = dlopen(plugin, round % 2 ? RTLD_NOW : RTLD_LAZY);
        if (!library) fail("dlopen: %s", dlerror());
        void *symbol = dlsym(library, "plugin_make");
        if (!symbol) fail("dlsym: %s", dlerror());
        void *(*make)(size_t, uint64_t) = (void *(*)(size_t, uint64_t))(uintptr_t)symbol;
        made[round] = make(MADE, round);
        pthread_t thread;
        must(pthread_create(&thread, NULL, from_thread, symbol) == 0);
        check(at + round % 8 * (pages / 8) * PAGE, pages / 8, 1, round % 8 * (pages / 8),
              "while a library is loaded");
        must(pthread_join(thread, NULL) == 0);
        if (dlclose(library) != 0) fail("dlclose: %s", dlerror());
    }
    for (int round = 0; round < ROUNDS; round++) {
        check(made[round], MADE, round, 0, "made by a library that is gone");
        free(made[round]);
    }
    if (dlopen("/nonexistent.so", RTLD_NOW) || !dlerror()) fail("dlopen of nothing");
    check(at, pages, 1, 0, "at the end");

    // Left loaded: its destructor runs when the program ends.
    must(dlopen(plugin, RTLD_NOW));
    puts("OK dlopen");
}
