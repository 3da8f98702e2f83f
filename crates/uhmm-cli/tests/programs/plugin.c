// What dlopen.c loads: a library with a constructor, a destructor, thread-local memory, its own
// data, and allocations that outlive it.

#include "check.h"

static char data[64 * PAGE] = {1};
static char *held;
static __thread uint64_t mine[WORDS];

__attribute__((constructor)) static void loaded(void) {
    fill(data, 64, 60, 0);
    must(held = malloc(256 * PAGE));
    fill(held, 256, 61, 0);
}

__attribute__((destructor)) static void unloaded(void) {
    check(data, 64, 60, 0, "a library's data, in its destructor");
    check(held, 256, 61, 0, "a library's allocation, in its destructor");
    free(held);
}

// Memory of `pages` pages, filled, for the caller to free.
__attribute__((visibility("default"))) void *plugin_make(size_t pages, uint64_t seed) {
    fill_page(mine, seed, 0);
    void *made = malloc(pages * PAGE);
    must(made);
    fill(made, pages, seed, 0);
    check_page(mine, seed, 0, "a library's thread-local memory");
    return made;
}
