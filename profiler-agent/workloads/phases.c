// phases MILLISECONDS ROUNDS: a program that does something else every so often, by the clock on the wall.
//
// A round is four phases: alpha, beta, alpha, delta. In each second it works for 800 ms and rests for 200.
#include "burn.h"

static int64_t start, step;

static int64_t now(void) { return clock_of(CLOCK_MONOTONIC) - start; }

// Until the phase is over; `one` lasts far less than that.
static inline __attribute__((always_inline)) void phase(int64_t end, void (*one)(void)) {
  while (now() < end) {
    if (now() % SECOND < 800 * MILLISECOND) {
      one();
    } else {
      struct timespec rest = {0, MILLISECOND};
      nanosleep(&rest, NULL);
    }
  }
}

__attribute__((noinline, noclone)) void count(int64_t times) {
  for (volatile int64_t i = 0; i < times; i++)
    ;
}

__attribute__((noinline, noclone)) void ask_the_kernel(void) {
  static char buffer[1 << 16];
  FILE *zeros = fopen("/dev/zero", "r");
  if (!zeros) exit(1);
  for (int i = 0; i < 40; i++)
    if (!fread(buffer, sizeof buffer, 1, zeros)) exit(1);
  fclose(zeros);
}

__attribute__((noinline, noclone)) void alpha(void) { count(600000); WITH_FRAME(); }
__attribute__((noinline, noclone)) void beta(void) { count(300000); count(300000); WITH_FRAME(); }
__attribute__((noinline, noclone)) void delta(void) { ask_the_kernel(); count(100000); WITH_FRAME(); }

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  step = atoll(argv[1]) * MILLISECOND;
  start = clock_of(CLOCK_MONOTONIC);
  int64_t end = 0;
  for (int round = 0; round < atoi(argv[2]); round++) {
    phase(end += step, alpha);
    phase(end += step, beta);
    phase(end += step, alpha);
    phase(end += step, delta);
  }
  return 0;
}
