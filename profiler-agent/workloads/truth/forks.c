// Forks, and the children burn without running another program.
#include "truth.h"

#include <sys/wait.h>

FRAME void burn_in_child(void) { BURN(60 * MILLISECOND); }

FRAME void in_child(void) {
  MORTAL();
  burn_in_child();
  _exit(0);
}

FRAME void one_round(void) {
  pid_t child = fork();
  if (child == 0) in_child();
  if (child > 0) waitpid(child, NULL, 0);
}

int main(void) {
  MORTAL();
  for (;;) one_round();
}
