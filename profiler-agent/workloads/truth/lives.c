// lives OTHER: burns, then becomes the other program under the same pid, which becomes this one again.
#include "truth.h"

FRAME void burn_in_this_life(void) { BURN(120 * MILLISECOND); }

FRAME void live(void) {
  burn_in_this_life();
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  MORTAL();
  if (argc != 2) return 2;
  live();
  execl(argv[1], argv[1], argv[0], NULL);
  return 1;
}
