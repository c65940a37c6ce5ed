// Signal handlers: on an alternate stack, one inside another there, and on the ordinary stack; over a leaf, and over functions in the
// middle of their first instructions.
#include "truth.h"

#include <signal.h>
#include <string.h>

#define BURNT_BY_HANDLER (1500 * MILLISECOND / 1000)

static volatile int nested;

FRAME void burn_on_alternate(void) { BURN(BURNT_BY_HANDLER); }
FRAME void burn_on_nested(void) { BURN(BURNT_BY_HANDLER); }
FRAME void burn_on_ordinary(void) { BURN(BURNT_BY_HANDLER); }

FRAME void on_nested(int signal) {
  burn_on_nested();
  (void)signal;
}

FRAME void on_alternate(int signal) {
  if (nested)
    system_call(SYS_tgkill, getpid(), getpid(), SIGUSR2);
  else
    burn_on_alternate();
  (void)signal;
}

FRAME void on_ordinary(int signal) {
  burn_on_ordinary();
  (void)signal;
}

// Touches no stack: the return address is what the stack pointer points at.
FRAME void interrupted_leaf(long rounds) {
  while (rounds--) __asm__ volatile("");
}

// Saves every register it may, so that most of its time is its first and last instructions.
FRAME void prologue(void) { __asm__ volatile("" : : : "rbx", "rbp", "r12", "r13", "r14", "r15", "memory"); }

FRAME void call_often(long rounds) {
  while (rounds--) prologue();
}

static void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  action.sa_flags = flags | SA_RESTART;
  sigaction(signal, &action, NULL);
}

int main(void) {
  MORTAL();
  static char room[1 << 16];
  stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
  sigaltstack(&stack, NULL);
  handle(SIGUSR1, on_alternate, SA_ONSTACK);
  handle(SIGUSR2, on_nested, SA_ONSTACK);
  handle(SIGURG, on_ordinary, 0);
  timer_t timers[2];
  int signals[2] = {SIGUSR1, SIGURG};
  for (int i = 0; i < 2; i++) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signals[i]};
    timer_create(CLOCK_MONOTONIC, &event, &timers[i]);
  }
  for (int turn = 0;; turn++) {
    // One kind of signal at a time, so that the chains are few.
    nested = turn % 3 == 1;
    struct itimerspec often = {{0, 2100000}, {0, 2100000}}, never = {{0, 0}, {0, 0}};
    timer_settime(timers[0], 0, turn % 3 == 2 ? &never : &often, NULL);
    timer_settime(timers[1], 0, turn % 3 == 2 ? &often : &never, NULL);
    interrupted_leaf(20000000);
    call_often(3000000);
  }
}
