// Coroutines on stacks of their own.
#include "truth.h"

#include <ucontext.h>

static ucontext_t resumer, coroutine, other;

FRAME void burn_in_coroutine(void) { BURN(SLICE); }
FRAME void burn_in_other(void) { BURN(SLICE); }

FRAME void entry(void) {
  for (;;) {
    burn_in_coroutine();
    swapcontext(&coroutine, &other);
  }
}

// Resumed by a coroutine, not from main's stack.
FRAME void other_entry(void) {
  for (;;) {
    burn_in_other();
    swapcontext(&other, &resumer);
  }
}

FRAME void resume(void) { swapcontext(&resumer, &coroutine); }

int main(void) {
  MORTAL();
  static char room[2][1 << 16];
  ucontext_t *contexts[2] = {&coroutine, &other};
  for (int i = 0; i < 2; i++) {
    getcontext(contexts[i]);
    contexts[i]->uc_stack.ss_sp = room[i];
    contexts[i]->uc_stack.ss_size = sizeof room[i];
    contexts[i]->uc_link = &resumer;
  }
  makecontext(&coroutine, entry, 0);
  makecontext(&other, other_entry, 0);
  for (;;) resume();
}
