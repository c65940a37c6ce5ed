// driver PROGRAM MILLISECONDS REPORT: runs the program again and again, one after the other, for that long. Then REPORT says how many there
// were, and the CPU time of all of them and of this process, in nanoseconds.
#include "truth.h"

#include <sys/resource.h>
#include <sys/wait.h>

static int64_t cpu(int who) {
  struct rusage usage;
  getrusage(who, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * SECOND + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  MORTAL();
  int64_t end = clock_of(CLOCK_MONOTONIC) + atoll(argv[2]) * MILLISECOND;
  volatile long programs = 0;
  while (clock_of(CLOCK_MONOTONIC) < end) {
    pid_t child = vfork();
    if (child == 0) {
      execl(argv[1], argv[1], NULL);
      _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) return 1;
    programs++;
  }
  FILE *report = fopen(argv[3], "w");
  if (!report) return 1;
  fprintf(report, "programs %ld\nchildren %lld\nself %lld\n", programs, (long long)cpu(RUSAGE_CHILDREN),
          (long long)cpu(RUSAGE_SELF));
  return fclose(report) ? 1 : 0;
}
