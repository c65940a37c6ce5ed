// A thread that goes on when main's has ended.
#include "truth.h"

#include <pthread.h>

FRAME void burn_in_orphan(void) { BURN(SLICE); }

FRAME void *orphan(void *nothing) {
  for (;;) burn_in_orphan();
  return nothing;
}

int main(void) {
  MORTAL();
  pthread_t thread;
  if (pthread_create(&thread, NULL, orphan, NULL)) return 1;
  pthread_exit(NULL);
}
