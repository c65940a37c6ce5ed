// Loaded and unloaded by plugins.c.
#include "truth.h"

FRAME void burn_in_plugin(void) { BURN(30 * MILLISECOND); }

FRAME void plugin_entry(void) {
  burn_in_plugin();
  __asm__ volatile("");
}
