// The malloc family: four threads allocate, grow, shrink, verify, and free what others allocated.

#include "check.h"
#include <malloc.h>
#include <pthread.h>

enum { THREADS = 4, SLOTS = 4096, STEPS = 20000 };

struct slot {
    pthread_mutex_t lock;
    unsigned char *block;
    size_t size;
    uint64_t seed;
};

static struct slot slots[SLOTS];

// 8 bytes of noise, 56 of one value: blocks of any size and alignment have a pattern.
static unsigned char byte_of(uint64_t seed, size_t i) {
    return i % 64 < 8 ? mix(seed + i / 64) >> (i % 8 * 8) : (unsigned char)seed;
}

static void write_block(struct slot *slot, uint64_t seed) {
    slot->seed = seed;
    for (size_t i = 0; i < slot->size; i++) slot->block[i] = byte_of(seed, i);
}

static void check_block(const struct slot *slot, size_t size, const char *what) {
    for (size_t i = 0; i < size; i++) {
        unsigned char want = byte_of(slot->seed, i);
        if (slot->block[i] != want)
            fail("%s: block %zu at %p of %zu bytes, page %zu of it, byte %zu: expected %02x, found %02x",
                 what, slot - slots, (void *)slot->block, slot->size, i / PAGE, i, want,
                 slot->block[i]);
    }
}

// 1 byte to 256 KiB, each power of two as likely as another.
static size_t some_size(uint64_t *random) {
    size_t top = (size_t)1 << below(random, 18);
    return top + below(random, top);
}

static void allocate(struct slot *slot, uint64_t *random) {
    slot->size = some_size(random);
    size_t alignment = (size_t)16 << below(random, 9);
    switch (below(random, 5)) {
    case 0:
        slot->block = calloc(slot->size, 1);
        must(slot->block);
        for (size_t i = 0; i < slot->size; i++)
            if (slot->block[i])
                fail("calloc: byte %zu of %zu at %p is %02x, not zero", i, slot->size,
                     (void *)slot->block, slot->block[i]);
        break;
    case 1:
        slot->size = (slot->size + alignment - 1) / alignment * alignment;
        slot->block = aligned_alloc(alignment, slot->size);
        if ((uintptr_t)slot->block % alignment) fail("aligned_alloc: %p", (void *)slot->block);
        break;
    case 2:
        must(posix_memalign((void **)&slot->block, alignment, slot->size) == 0);
        if ((uintptr_t)slot->block % alignment) fail("posix_memalign: %p", (void *)slot->block);
        break;
    default:
        slot->block = malloc(slot->size);
    }
    must(slot->block);
    if (malloc_usable_size(slot->block) < slot->size)
        fail("malloc_usable_size is %zu for %zu", malloc_usable_size(slot->block), slot->size);
    write_block(slot, below(random, UINT64_MAX));
}

static void *worker(void *argument) {
    uint64_t random = (uintptr_t)argument + 1;
    for (int step = 0; step < STEPS; step++) {
        struct slot *slot = &slots[below(&random, SLOTS)];
        must(pthread_mutex_lock(&slot->lock) == 0);
        if (!slot->block) {
            allocate(slot, &random);
        } else if (below(&random, 4) == 0) {
            size_t size = some_size(&random);
            unsigned char *moved = realloc(slot->block, size);
            must(moved);
            slot->block = moved;
            check_block(slot, size < slot->size ? size : slot->size, "after realloc");
            slot->size = size;
            write_block(slot, below(&random, UINT64_MAX));
        } else {
            check_block(slot, slot->size, "before free");
            free(slot->block);
            slot->block = NULL;
        }
        must(pthread_mutex_unlock(&slot->lock) == 0);
    }
    return NULL;
}

// Sizes at the edges, and calls whose answer the standard fixes.
static void edges(void) {
    free(NULL);
    void *block = realloc(NULL, 100);
    must(block);
    free(block);
    block = malloc(0);
    must(block);
    free(block);
    volatile size_t huge = SIZE_MAX / 2 + 1;
    errno = 0;
    if (malloc(huge) || errno != ENOMEM) fail("malloc of half the address space");
    if (calloc(huge, 4)) fail("calloc whose product wraps around");
    if (reallocarray(NULL, huge, 4)) fail("reallocarray whose product wraps around");
    if (posix_memalign(&block, 3, 100) != EINVAL) fail("posix_memalign with alignment 3");
    block = valloc(100);
    if (!block || (uintptr_t)block % PAGE) fail("valloc: %p", block);
    free(block);
    char *text = strdup("a string");
    must(text && strcmp(text, "a string") == 0);
    free(text);
    must(asprintf(&text, "%d", 42) == 2 && strcmp(text, "42") == 0);
    free(text);
}

// One large block that grows: realloc may move it, and may not lose a byte.
static void growing(size_t mib) {
    char *block = NULL;
    size_t pages = 0, step = 512;
    while (pages < mib * MIB / PAGE) {
        must(block = realloc(block, (pages + step) * PAGE));
        fill(block + pages * PAGE, step, 7, pages);
        pages += step;
    }
    check(block, pages, 7, 0, "a block that grew");
    must(block = realloc(block, pages / 2 * PAGE));
    check(block, pages / 2, 7, 0, "a block that shrank");
    free(block);
}

int main(int argc, char **argv) {
    edges();
    growing(mib_wanted(argc, argv, 128));
    for (int i = 0; i < SLOTS; i++) must(pthread_mutex_init(&slots[i].lock, NULL) == 0);
    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        must(pthread_create(&threads[t], NULL, worker, (void *)t) == 0);
    for (int t = 0; t < THREADS; t++) must(pthread_join(threads[t], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].block) check_block(&slots[i], slots[i].size, "at the end");
        free(slots[i].block);
    }
    puts("OK malloc");
}
