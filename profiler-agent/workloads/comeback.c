// comeback CPU: burns on a CPU, and under another name on the same CPU once it has been away and is back.
//
// A process that may run on this CPU alone shows it: as long as the CPU is offline, it cannot be pinned to it.
#include "burn.h"

#include <sched.h>

BURNER(before_it_left)
BURNER(after_it_came_back)
BURNER(while_it_was_away)

static int pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  int64_t end = clock_of(CLOCK_MONOTONIC) + 60 * SECOND;  // should nobody end it
  int cpu = atoi(argv[1]), left = 0;
  struct burnt burnt = {0, 0};
  while (clock_of(CLOCK_MONOTONIC) < end) {
    if (!pin(cpu)) {
      left = 1;
      while_it_was_away(&burnt, 5 * MILLISECOND);
    } else if (left) {
      after_it_came_back(&burnt, 5 * MILLISECOND);
    } else {
      before_it_left(&burnt, 5 * MILLISECOND);
    }
  }
  return 0;
}
