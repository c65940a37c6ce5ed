// jit HOW MILLISECONDS: generates a function at run time, runs it, and puts another one in its place.
//
// Each of the two, `first` and `second`, burns CPU time for MILLISECONDS, and then what they are called is taken away: the file is
// removed. HOW says how it is written what they are called:
//   map      in /tmp/perf-PID.map, with lines among it that are none, and one that comes in two halves
//   dump     in jit-PID.dump, which is mapped as the convention wants it
//   none     not at all
//   fifo, device, link, foreign, sparse
//            something that is no such file is at the place of the map: a pipe, a device, a link to a real one, a real one of another
//            user, a line of 10 GB
#include "burn.h"

#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { ROUNDS = 200000 };

// push %rbp; mov %rsp,%rbp; 1: dec %rdi; jnz 1b; pop %rbp; ret
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};

static char path[64], target[] = "/tmp/perf-map-XXXXXX";
static FILE *file;

static void say(const char *how, void (*function)(long), const char *name) {
  if (strcmp(how, "dump") == 0) {
    struct {
      uint32_t kind, len;
      uint64_t time;
      uint32_t pid, tid;
      uint64_t address, code, length, number;
    } load = {.len = sizeof load + strlen(name) + 1 + sizeof code, .time = clock_of(CLOCK_MONOTONIC),
              .pid = getpid(), .tid = getpid(), .address = (uintptr_t)function, .code = (uintptr_t)function,
              .length = sizeof code};
    fwrite(&load, sizeof load, 1, file);
    fwrite(name, strlen(name) + 1, 1, file);
    fwrite(code, sizeof code, 1, file);
    fflush(file);
  } else if (file != NULL) {
    fprintf(file, "no line\n%lx\n\xff\xfe\n%lx %zx ", (long)function, (long)function, sizeof code);
    fflush(file);
    usleep(150000);
    fprintf(file, "%s\n", name);
    fflush(file);
  }
}

static void open_file(const char *how) {
  snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
  if (strcmp(how, "fifo") == 0) {
    mkfifo(path, 0644);
    return;
  }
  if (strcmp(how, "device") == 0) {
    // The one that /dev/zero is.
    if (mknod(path, S_IFCHR | 0644, makedev(1, 5)) != 0) abort();
    return;
  }
  if (strcmp(how, "link") == 0) {
    file = fdopen(mkstemp(target), "w");
    if (symlink(target, path) != 0) abort();
    return;
  }
  if (strcmp(how, "none") == 0) return;
  if (strcmp(how, "dump") == 0) snprintf(path, sizeof path, "jit-%d.dump", getpid());
  file = fopen(path, "w+");
  if (file == NULL) abort();
  if (strcmp(how, "foreign") == 0 && fchown(fileno(file), 4321, 4321) != 0) abort();
  if (strcmp(how, "sparse") == 0 && (ftruncate(fileno(file), 10L << 30) != 0 || fseek(file, 0, SEEK_END) != 0)) abort();
  if (strcmp(how, "dump") == 0) {
    struct {
      uint32_t magic, version, len, machine, pad, pid;
      uint64_t time, flags;
    } header = {.magic = 0x4a695444, .version = 1, .len = sizeof header, .machine = EM_X86_64, .pid = getpid()};
    fwrite(&header, sizeof header, 1, file);
    fflush(file);
    if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fileno(file), 0) == MAP_FAILED) abort();
  }
}

static void run(void (*function)(long), int64_t time) {
  const int64_t end = clock_of(CLOCK_THREAD_CPUTIME_ID) + time;
  while (clock_of(CLOCK_THREAD_CPUTIME_ID) < end) function(ROUNDS);
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const int64_t time = atol(argv[2]) * MILLISECOND;
  open_file(argv[1]);
  void (*function)(long) = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy((void *)function, code, sizeof code);
  // Called from one place: but for the name, the stacks of both are the same.
  static const char *const names[] = {"first", "second"};
#pragma GCC unroll 0
  for (int i = 0; i < 2; i++) {
    say(argv[1], function, names[i]);
    run(function, time);
  }
  unlink(path);
  unlink(target);
  return 0;
}
