// plugins LIBRARY: loads a library, burns in it, unloads it, and so again.
#include "truth.h"

#include <dlfcn.h>

FRAME void one_round(const char *library) {
  void *handle = dlopen(library, RTLD_NOW);
  if (!handle) abort();
  void (*entry)(void) = (void (*)(void))dlsym(handle, "plugin_entry");
  if (!entry) abort();
  entry();
  dlclose(handle);
  // The place it had is somebody else's next time.
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  MORTAL();
  if (argc != 2) return 2;
  for (;;) one_round(argv[1]);
}
