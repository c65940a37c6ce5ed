// chains MODE READY: burns CPU time for ever at the end of a chain of calls that is known to the frame; the file READY appears
// when it is there.
//
// The chain is 31 deep, and every other frame of it has a length that only its function knows. What it calls:
//   qsort     the C library, which calls back
//   syscalls  the kernel, which is where most of the time goes
//   jit       code made at run time, with frame pointers and without a table, which calls back
//   signal    the kernel again, which puts a handler on a stack of its own
//   thread    the same as `qsort`, on another thread
#include "burn.h"

#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#define DEPTH 30  // even: 16 of one function and 15 of the other
#define FUNCTION __attribute__((noipa)) void  // neither inlined nor cloned nor looked into

static const char *ready;
static void (*bottom)(void);

// Once, and only then is the process looked at.
static void arrived(void) {
  if (ready) close(open(ready, O_CREAT | O_WRONLY, 0600));
  ready = NULL;
}

FUNCTION spin(void) {
  for (volatile int i = 0; i < 2000; i++)
    ;
}

FUNCTION spin_for_ever(void) {
  arrived();
  for (;;) spin();
}

FUNCTION variable(int n);

FUNCTION fixed(int n) {
  if (n == 0)
    bottom();
  else
    variable(n - 1);
  __asm__ volatile("" : : : "memory");  // so that it is not left for the next
}

FUNCTION variable(int n) {
  volatile char *room = alloca(16 * n + 8);
  room[0] = 1;
  fixed(n - 1);
  room[0] = 2;
}

__attribute__((noipa)) int compare(const void *a, const void *b) {
  spin();
  return *(const int *)a - *(const int *)b;
}

FUNCTION sorts(void) {
  static int numbers[64];
  arrived();
  for (;;) {
    for (int i = 0; i < 64; i++) numbers[i] = (i * 37) % 64;
    qsort(numbers, 64, sizeof *numbers, compare);
  }
}

FUNCTION reads(void) {
  static char block[64 << 10];
  int zero = open("/dev/zero", O_RDONLY);
  arrived();
  for (;;) system_call(SYS_read, zero, (long)block, sizeof block);
}

// push rbp; mov rbp, rsp; call rdi; pop rbp; ret
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};

FUNCTION calls_jit(void) {
  void *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(made, code, sizeof code);
  mprotect(made, 4096, PROT_READ | PROT_EXEC);
  ((void (*)(void (*)(void)))made)(spin_for_ever);
}

static void handler(int signal) {
  (void)signal;
  spin_for_ever();
}

FUNCTION is_interrupted(void) {
  stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  sigaltstack(&stack, NULL);
  sigaction(SIGUSR1, &action, NULL);
  system_call(SYS_kill, system_call(SYS_getpid, 0, 0, 0), SIGUSR1, 0);
}

__attribute__((noipa)) void *runs(void *argument) {
  fixed(DEPTH);
  return argument;
}

FUNCTION starts_thread(void) {
  pthread_t thread;
  bottom = sorts;
  pthread_create(&thread, NULL, runs, NULL);
  pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*bottom)(void);
  } modes[] = {{"qsort", sorts}, {"syscalls", reads}, {"jit", calls_jit}, {"signal", is_interrupted}};
  if (argc < 2) return 2;
  ready = argc > 2 ? argv[2] : NULL;
  if (!strcmp(argv[1], "thread")) starts_thread();
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (!strcmp(argv[1], modes[i].name)) bottom = modes[i].bottom;
  if (bottom) fixed(DEPTH);
  return 2;
}
