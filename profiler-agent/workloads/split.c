// split REPORT MILLISECONDS THREADS: threads that spend 60, 30 and 10 % of their CPU time in three functions.
//
// Each burns MILLISECONDS of CPU time, or until SIGTERM. Then REPORT says, by the clocks of the kernel, what was burnt
// where; it appears in one step.
#include "burn.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

static volatile sig_atomic_t asked_to_end;
static int64_t budget;

struct worker {
  pthread_t thread;
  struct burnt sixty, thirty, ten;
};

static void on_term(int signal) {
  (void)signal;
  asked_to_end = 1;
}

BURNER(sixty)
BURNER(thirty)
BURNER(ten)

// Slices are longer than the periods of the tests, so that a slice holds its share of samples and one more or less.
__attribute__((noinline, noclone)) void round_of_slices(struct worker *worker) {
  sixty(&worker->sixty, 30 * MILLISECOND);
  thirty(&worker->thirty, 15 * MILLISECOND);
  ten(&worker->ten, 5 * MILLISECOND);
}

__attribute__((noinline, noclone)) void *work(void *argument) {
  struct worker *worker = argument;
  while (!asked_to_end && clock_of(CLOCK_THREAD_CPUTIME_ID) < budget) round_of_slices(worker);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  budget = atoll(argv[2]) * MILLISECOND;
  int threads = atoi(argv[3]);
  struct worker *workers = calloc(threads, sizeof *workers);
  signal(SIGTERM, on_term);
  for (int i = 0; i < threads; i++)
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) return 1;

  struct burnt sixty = {0}, thirty = {0}, ten = {0};
  for (int i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    struct burnt *sums[] = {&sixty, &thirty, &ten};
    struct burnt *parts[] = {&workers[i].sixty, &workers[i].thirty, &workers[i].ten};
    for (int part = 0; part < 3; part++) {
      sums[part]->cpu += parts[part]->cpu;
      sums[part]->stolen += parts[part]->stolen;
    }
  }
  char preliminary[4096];
  snprintf(preliminary, sizeof preliminary, "%s.part", argv[1]);
  FILE *report = fopen(preliminary, "w");
  if (!report) return 1;
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  fprintf(report, "sixty %lld\nthirty %lld\nten %lld\n", (long long)sixty.cpu, (long long)thirty.cpu,
          (long long)ten.cpu);
  fprintf(report, "stolen %lld\n", (long long)(sixty.stolen + thirty.stolen + ten.stolen));
  fprintf(report, "switches %ld\n", usage.ru_nvcsw + usage.ru_nivcsw);
  fprintf(report, "asked_to_end %d\n", (int)asked_to_end);
  // The last thing: what comes after is some 100 us that nobody accounts for.
  fprintf(report, "cpu %lld\n", (long long)clock_of(CLOCK_PROCESS_CPUTIME_ID));
  fclose(report);
  return rename(preliminary, argv[1]) ? 1 : 0;
}
