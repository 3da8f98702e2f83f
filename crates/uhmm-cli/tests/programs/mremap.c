// mremap: growing, shrinking, moving, moving onto, and leaving the old range mapped. Every page
// goes along, whether it is in RAM, on a device or never touched.

#include "faulting.h"
#include <sys/mman.h>

enum { RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS };

static char *map(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);
    must(at != MAP_FAILED);
    return at;
}

// Fills all but every eighth page, which stays untouched.
static void fill_most(char *at, size_t pages, uint64_t seed) {
    for (size_t p = 0; p < pages; p++)
        if (p % 8) fill_page(at + p * PAGE, seed, p);
}

static void check_most(const char *at, size_t pages, uint64_t seed, const char *what) {
    for (size_t p = 0; p < pages; p++) {
        if (p % 8) check_page(at + p * PAGE, seed, p, what);
        else check_zero(at + p * PAGE, p, what);
    }
}

static char *growing(size_t pages) {
    size_t size = pages / 16;
    char *at = map(size);
    fill_most(at, size, 1);
    while (size < pages) {
        size_t grown = size * 2 < pages ? size * 2 : pages;
        at = mremap(at, size * PAGE, grown * PAGE, MREMAP_MAYMOVE);
        must(at != MAP_FAILED);
        check_zeros(at + size * PAGE, grown - size, "what was added");
        for (size_t p = size; p < grown; p++)
            if (p % 8) fill_page(at + p * PAGE, 1, p);
        size = grown;
    }
    check_most(at, pages, 1, "after growing");
    return at;
}

static void in_place(void) {
    char *at = map(64);
    fill_most(at, 64, 2);
    must(munmap(at + 32 * PAGE, 32 * PAGE) == 0);
    char *same = mremap(at, 32 * PAGE, 48 * PAGE, 0);
    if (same != MAP_FAILED) {
        if (same != at) fail("mremap moved without MREMAP_MAYMOVE");
        check_most(at, 32, 2, "grown in place");
        check_zeros(at + 32 * PAGE, 16, "grown in place");
        must(munmap(at, 48 * PAGE) == 0);
    }
    char *wall = map(64);
    fill_most(wall, 64, 3);
    if (mremap(wall, 32 * PAGE, 48 * PAGE, 0) != MAP_FAILED || errno != ENOMEM)
        fail("mremap grew over the rest of its own mapping");
    check_most(wall, 64, 3, "after a refused mremap");
    must(munmap(wall, 64 * PAGE) == 0);
}

int main(int argc, char **argv) {
    size_t pages = mib_wanted(argc, argv, 128) * MIB / PAGE;
    catch_faults();
    char *at = growing(pages);
    in_place();

    // Moved onto live memory of another kind: that is gone, and the moved pages are all there.
    char *target = map(pages + 2);
    fill(target, pages + 2, 4, 0);
    char *moved =
        mremap(at, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE);
    if (moved != target + PAGE) fail("MREMAP_FIXED: %p", (void *)moved);
    check_most(moved, pages, 1, "after MREMAP_FIXED");
    check(target, 1, 4, 0, "before the target");
    check(target + (pages + 1) * PAGE, 1, 4, pages + 1, "after the target");
    expect_fault(at + PAGE, 0, SIGSEGV, SEGV_MAPERR, "where it came from");

    // A piece out of the middle.
    size_t piece = pages / 4 / 8 * 8;
    char *middle = mremap(moved + piece * PAGE, piece * PAGE, piece * PAGE,
                          MREMAP_MAYMOVE | MREMAP_FIXED, map(piece));
    must(middle != MAP_FAILED);
    for (size_t p = 0; p < piece; p++) {
        if (p % 8) check_page(middle + p * PAGE, 1, piece + p, "a piece moved away");
        else check_zero(middle + p * PAGE, p, "a piece moved away");
    }
    check_most(moved, piece, 1, "before the piece");
    expect_fault(moved + piece * PAGE, 1, SIGSEGV, SEGV_MAPERR, "where the piece was");

    // The pages move, the mapping stays and is empty.
    char *twin =
        mremap(moved, piece * PAGE, piece * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (twin != MAP_FAILED) {
        check_most(twin, piece, 1, "after MREMAP_DONTUNMAP");
        check_zeros(moved, piece, "left behind by MREMAP_DONTUNMAP");
        fill(moved, piece, 5, 0);
        check_most(twin, piece, 1, "beside what was left behind");
        check(moved, piece, 5, 0, "left behind and written");
    }

    must(mremap(middle, piece * PAGE, piece / 2 * PAGE, 0) == middle);
    expect_fault(middle + piece / 2 * PAGE, 0, SIGSEGV, SEGV_MAPERR, "cut off");
    if (mremap((char *)middle + 1, PAGE, PAGE, 0) != MAP_FAILED || errno != EINVAL)
        fail("mremap of an odd address");
    puts("OK mremap");
}
