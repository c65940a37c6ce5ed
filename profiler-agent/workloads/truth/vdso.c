// The kernel's code in user space.
#include "truth.h"

#include <sys/time.h>

FRAME void read_clock(void) {
  struct timespec time;
  for (int i = 0; i < 20000; i++) clock_gettime(CLOCK_MONOTONIC, &time);
}

FRAME void read_time(void) {
  struct timeval time;
  for (int i = 0; i < 20000; i++) gettimeofday(&time, NULL);
}

int main(void) {
  MORTAL();
  for (;;) {
    read_clock();
    read_time();
  }
}
