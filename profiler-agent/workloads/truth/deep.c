// deep FRAMES: as many frames above the one that burns.
#include "truth.h"

FRAME void burn_at_the_bottom(void) { BURN(40 * MILLISECOND); }

FRAME void descend(long further) {
  if (further > 1)
    descend(further - 1);
  else
    burn_at_the_bottom();
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  MORTAL();
  if (argc != 2) return 2;
  for (;;) descend(atol(argv[1]));
}
