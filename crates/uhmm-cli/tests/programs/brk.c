// brk and sbrk, as old allocators use them: the break grows, shrinks and grows again.

#include "check.h"
#include <sys/wait.h>

int main(int argc, char **argv) {
    size_t size = mib_wanted(argc, argv, 64) * MIB, pages = size / PAGE;
    char *start = sbrk(0);
    must(start != (void *)-1);
    char *first = (char *)(((uintptr_t)start + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    must(brk(first) == 0);

    must(sbrk(size) == first);
    if (sbrk(0) != first + size) fail("the break is at %p", sbrk(0));
    check_zeros(first, pages, "a fresh break");
    fill(first, pages, 1, 0);
    check(first, pages, 1, 0, "the break");

    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        check(first, pages, 1, 0, "the break in a child");
        must(sbrk(MIB) == first + size);
        fill(first, pages, 2, 0);
        check(first, pages, 2, 0, "the break in a child");
        _exit(0);
    }
    int status;
    must(waitpid(child, &status, 0) == child);
    if (status != 0) fail("the child ended with status %x", status);

    must(sbrk(-(intptr_t)(size / 2)) == first + size);
    check(first, pages / 2, 1, 0, "a lowered break");
    must(sbrk(size / 2) == first + size / 2);
    check_zeros(first + size / 2, pages / 2, "above a break that was lowered");
    check(first, pages / 2, 1, 0, "below it");

    // malloc goes on working beside it.
    char *block = malloc(size);
    must(block);
    fill(block, pages, 3, 0);
    check(first, pages / 2, 1, 0, "beside malloc");
    check(block, pages, 3, 0, "malloc beside the break");
    puts("OK brk");
}
