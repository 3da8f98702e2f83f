// Touching memory that ought to fault, and learning how it did.

#ifndef FAULTING_H
#define FAULTING_H

#include "check.h"
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf fault_return;
static siginfo_t fault_seen;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    fault_seen = *info;
    siglongjmp(fault_return, 1);
}

static inline void catch_faults(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    must(sigaction(SIGSEGV, &action, NULL) == 0);
    must(sigaction(SIGBUS, &action, NULL) == 0);
}

// Fails unless the access faults with `signal` and `code` at the very address. Where nothing is
// mapped, managed memory has the code of memory that may not be touched: its range stays reserved.
static inline void
expect_fault(volatile char *at, int write, int signal, int code, const char *what) {
    if (sigsetjmp(fault_return, 1) == 0) {
        if (write) *at = 1;
        else (void)*at;
        fail("%s: %s of %p did not fault", what, write ? "a write" : "a read", (void *)at);
    }
    int reserved = code == SEGV_MAPERR && fault_seen.si_code == SEGV_ACCERR;
    if (fault_seen.si_signo != signal || (fault_seen.si_code != code && !reserved) ||
        fault_seen.si_addr != at)
        fail("%s: expected signal %d code %d at %p, got signal %d code %d at %p", what, signal, code,
             (void *)at, fault_seen.si_signo, fault_seen.si_code, fault_seen.si_addr);
}

#endif
