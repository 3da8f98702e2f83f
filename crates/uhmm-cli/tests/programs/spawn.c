// posix_spawn, vfork, system and popen, from several threads, while the parent's memory is under
// pressure. The children are this program again, each with memory of its own.

#include "check.h"
#include <pthread.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

extern char **environ;

static char *self;
static char *at;
static size_t pages;

static char *map(size_t count) {
    char *memory =
        mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    return memory;
}

static int as_child(const char *mib, const char *code) {
    size_t count = strtoul(mib, NULL, 10) * MIB / PAGE;
    char *memory = map(count);
    check_zeros(memory, count, "a spawned child's fresh memory");
    fill(memory, count, 50, 0);
    check(memory, count, 50, 0, "a spawned child's memory");
    return atoi(code);
}

static void expect(pid_t child, int code, const char *what) {
    int status;
    must(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
        fail("%s: expected exit code %d, got status %x", what, code, status);
}

static pid_t by_vfork(char **args) {
    pid_t child = vfork();
    must(child >= 0);
    if (child == 0) {
        execv(self, args);
        _exit(98);
    }
    return child;
}

static void *spawner(void *argument) {
    size_t part = pages / 2, first = (uintptr_t)argument * part;
    for (int i = 0; i < 6; i++) {
        char code[16];
        snprintf(code, sizeof code, "%d", i);
        char *args[] = {self, "child", "24", code, NULL};
        pid_t child;
        must(posix_spawn(&child, self, NULL, NULL, args, environ) == 0);
        check(at + first * PAGE, part, 1, first, "while a child runs");
        expect(child, i, "posix_spawn");
        expect(by_vfork(args), i, "vfork and exec");
    }
    return NULL;
}

int main(int argc, char **argv) {
    self = realpath("/proc/self/exe", NULL);
    must(self);
    if (argc > 3 && strcmp(argv[1], "child") == 0) return as_child(argv[2], argv[3]);

    pages = mib_wanted(argc, argv, 96) * MIB / PAGE;
    at = map(pages);
    fill(at, pages, 1, 0);

    pthread_t threads[2];
    for (uintptr_t t = 0; t < 2; t++)
        must(pthread_create(&threads[t], NULL, spawner, (void *)t) == 0);
    for (int t = 0; t < 2; t++) must(pthread_join(threads[t], NULL) == 0);

    char command[512];
    snprintf(command, sizeof command, "'%s' child 24 7", self);
    int status = system(command);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) fail("system: status %x", status);

    // What a child wrote with its environment and descriptors changed by file actions.
    posix_spawn_file_actions_t actions;
    int ends[2];
    must(pipe(ends) == 0);
    must(posix_spawn_file_actions_init(&actions) == 0);
    must(posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO) == 0);
    must(posix_spawn_file_actions_addclose(&actions, ends[0]) == 0);
    char *args[] = {"sh", "-c", "echo $WORD", NULL};
    char *environment[64] = {"WORD=heard", NULL};
    int kept = 1;
    for (char **e = environ; *e && kept < 62; e++) environment[kept++] = *e;
    pid_t child;
    must(posix_spawnp(&child, "sh", &actions, NULL, args, environment) == 0);
    must(close(ends[1]) == 0);
    // The pipe is read straight into memory that has gone cold.
    ssize_t got = read(ends[0], at + pages / 2 * PAGE, 16);
    if (got != 6 || memcmp(at + pages / 2 * PAGE, "heard\n", 6)) fail("a pipe: %zd bytes", got);
    fill_page(at + pages / 2 * PAGE, 1, pages / 2);
    expect(child, 0, "posix_spawnp");

    char line[64] = "";
    FILE *from = popen("echo $((6 * 7))", "r");
    must(from && fgets(line, sizeof line, from) && pclose(from) == 0);
    if (strcmp(line, "42\n")) fail("popen: %s", line);

    int missing = posix_spawn(&child, "/nonexistent", NULL, NULL, args, environ);
    if (missing != ENOENT) fail("posix_spawn of nothing: %d", missing);
    check(at, pages, 1, 0, "at the end");
    puts("OK spawn");
}
