// Burns 20 ms of CPU time below qsort, and exits.
#include "truth.h"

FRAME void burn_in_brief(void) { BURN(20 * MILLISECOND / 3); }

FRAME int compare(const void *left, const void *right) {
  burn_in_brief();
  return *(const int *)left - *(const int *)right;
}

FRAME void sort(void) {
  int numbers[3] = {3, 1, 2};  // three comparisons
  qsort(numbers, 3, sizeof *numbers, compare);
  __asm__ volatile("" : : "r"(numbers) : "memory");
}

int main(void) {
  MORTAL();
  sort();
  return 0;
}
