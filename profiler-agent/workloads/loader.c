// Spins in a library that it loads: loader LIBRARY
#include <dlfcn.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : 0;
  void (*spin)(void) = library ? (void (*)(void))dlsym(library, "spin_in_library") : 0;
  if (!spin) exit(1);
  for (;;) spin();
}
