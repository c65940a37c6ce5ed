// visitor: burns 2 ms below qsort, and ends.
// visitor stay: for each line of its input loads the library of that path, burns in it, and unloads it.
// Compiled with -DLIBRARY, that library.
#include "truth/truth.h"

#include <dlfcn.h>
#include <string.h>

#ifdef LIBRARY

FRAME void burn_in_library(void) { BURN(2 * MILLISECOND); }

FRAME void library_entry(void) {
  burn_in_library();
  __asm__ volatile("");
}

#else

FRAME int compare(const void *left, const void *right) {
  BURN(2 * MILLISECOND / 3);
  return *(const int *)left - *(const int *)right;
}

FRAME void visit(void) {
  int numbers[3] = {3, 1, 2};  // three comparisons
  qsort(numbers, 3, sizeof *numbers, compare);
  __asm__ volatile("" : : "r"(numbers) : "memory");
}

FRAME void load(const char *path) {
  void *handle = dlopen(path, RTLD_NOW);
  if (!handle) abort();
  void (*entry)(void) = (void (*)(void))dlsym(handle, "library_entry");
  if (!entry) abort();
  entry();
  dlclose(handle);
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  (void)argv;
  char path[4096];
  if (argc == 1) {
    visit();
    return 0;
  }
  while (fgets(path, sizeof path, stdin)) {
    path[strcspn(path, "\n")] = 0;
    load(path);
  }
  return 0;
}

#endif
