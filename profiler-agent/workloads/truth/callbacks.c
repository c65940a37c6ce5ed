// Callbacks from libc, below frames whose size is known at run time only.
#include "truth.h"

#include <alloca.h>
#include <string.h>

FRAME void burn_in_compare(void) { BURN(SLICE); }

FRAME int compare(const void *left, const void *right) {
  burn_in_compare();
  return *(const int *)left - *(const int *)right;
}

FRAME void sort(void) {
  int numbers[3] = {3, 1, 2};
  qsort(numbers, 3, sizeof *numbers, compare);
  __asm__ volatile("" : : "r"(numbers) : "memory");
}

// The stack pointer is rounded down, and the frame of the caller is found through a word that was saved: GCC's DRAP.
FRAME void realigned(size_t length) {
  __attribute__((aligned(64))) char aligned[64];
  char *more = alloca(length);
  memset(aligned, 1, sizeof aligned);
  memset(more, 1, length);
  sort();
  __asm__ volatile("" : : "r"(aligned), "r"(more) : "memory");
}

FRAME void with_alloca(size_t length) {
  char *room = alloca(length);
  memset(room, 1, length);
  realigned(length);
  __asm__ volatile("" : : "r"(room) : "memory");
}

FRAME void with_array(size_t length) {
  char room[length];
  memset(room, 1, length);
  realigned(length);
  __asm__ volatile("" : : "r"(room) : "memory");
}

int main(void) {
  MORTAL();
  size_t length = 200;
  for (;;) {
    OPAQUE(length);
    with_alloca(length);
    with_array(length);
  }
}
