// Patterns in pages, and what to say when a page holds something else.
//
// A pattern is made of a seed and a page number, so that a page that turns up in the wrong place,
// or an old version of it, is told apart from the right one. Half of each page is noise, so that
// it compresses to about a half, as real data does.

#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define MIB (1u << 20)

// Says what went wrong, and ends the program. Nothing here allocates or takes a lock, so it may
// be called from a signal handler or after fork.
__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...) {
    char line[512];
    int used = snprintf(line, sizeof line, "FAIL (pid %d): ", (int)getpid());
    va_list args;
    va_start(args, format);
    used += vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    if (used > (int)sizeof line - 2) used = sizeof line - 2;
    line[used] = '\n';
    ssize_t ignored = write(STDOUT_FILENO, line, used + 1);
    (void)ignored;
    _exit(99);
}

// Ends the program if a call has failed, with errno.
#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) fail("%s:%d: %s: %s", __FILE__, __LINE__, #condition, strerror(errno));  \
    } while (0)

static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The next number of a generator, below `limit`.
static inline uint64_t below(uint64_t *state, uint64_t limit) {
    *state = mix(*state);
    return *state % limit;
}

// Word `i` of page `page` in the pattern of `seed`.
static inline uint64_t word_of(uint64_t seed, uint64_t page, unsigned i) {
    uint64_t base = (seed << 40) ^ (page << 8);
    return i % 2 ? mix(base + i) : base | 1;
}

static inline void fill_page(void *at, uint64_t seed, uint64_t page) {
    uint64_t *words = at;
    for (unsigned i = 0; i < WORDS; i++) words[i] = word_of(seed, page, i);
}

// Fails naming the page, the first difference, and what the page looks like.
__attribute__((noreturn, cold)) static inline void
wrong_page(const uint64_t *words, const uint64_t *want, uint64_t page, const char *what) {
    unsigned first = 0, wrong = 0, zero = 0;
    for (unsigned i = 0; i < WORDS; i++) {
        zero += words[i] == 0;
        if (words[i] == want[i]) continue;
        if (wrong++ == 0) first = i;
    }
    fail("%s: page %llu at %p, byte %u: expected %016llx, found %016llx "
         "(%u of %u words differ, %u are zero)",
         what, (unsigned long long)page, (const void *)words, first * 8,
         (unsigned long long)want[first], (unsigned long long)words[first], wrong,
         (unsigned)WORDS, zero);
}

static inline void
check_words(const void *at, unsigned from, uint64_t seed, uint64_t page, const char *what) {
    const uint64_t *words = at;
    for (unsigned i = from; i < WORDS; i++) {
        if (__builtin_expect(words[i] == word_of(seed, page, i), 1)) continue;
        uint64_t want[WORDS];
        for (unsigned j = 0; j < WORDS; j++) want[j] = j < from ? words[j] : word_of(seed, page, j);
        wrong_page(words, want, page, what);
    }
}

static inline void check_page(const void *at, uint64_t seed, uint64_t page, const char *what) {
    check_words(at, 0, seed, page, what);
}

static inline void check_zero(const void *at, uint64_t page, const char *what) {
    static const uint64_t zeros[WORDS];
    if (memcmp(at, zeros, PAGE) != 0) wrong_page(at, zeros, page, what);
}

// The same for `pages` pages from `at` on, which are numbered from `first` on.
static inline void fill(void *at, size_t pages, uint64_t seed, uint64_t first) {
    for (size_t p = 0; p < pages; p++) fill_page((char *)at + p * PAGE, seed, first + p);
}

static inline void
check(const void *at, size_t pages, uint64_t seed, uint64_t first, const char *what) {
    for (size_t p = 0; p < pages; p++)
        check_page((const char *)at + p * PAGE, seed, first + p, what);
}

static inline void check_zeros(const void *at, size_t pages, const char *what) {
    for (size_t p = 0; p < pages; p++) check_zero((const char *)at + p * PAGE, p, what);
}

// How many MiB to use: the first argument, or `otherwise`.
static inline size_t mib_wanted(int argc, char **argv, size_t otherwise) {
    return argc > 1 ? strtoul(argv[1], NULL, 10) : otherwise;
}

#endif
