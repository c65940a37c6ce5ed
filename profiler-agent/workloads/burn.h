// What the workloads share: CPU time burnt in a function of a known name, by the clock of the thread that burns it.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MILLISECOND INT64_C(1000000)
#define SECOND (1000 * MILLISECOND)

// Without the C library's stub, which has no frame of its own: a walk by frame pointers would miss its caller.
static inline __attribute__((always_inline)) long system_call(long number, long a, long b, long c) {
#if defined(__x86_64__)
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
#else
  return syscall(number, a, b, c);
#endif
}

static inline __attribute__((always_inline)) int64_t clock_of(clockid_t clock) {
  struct timespec time;
  system_call(SYS_clock_gettime, clock, (long)&time, 0);
  return time.tv_sec * SECOND + time.tv_nsec;
}

// GCC gives a leaf that needs no stack no frame, whatever its options say, and then its caller is missing from the stack.
#define WITH_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))

// CPU time of this thread, and the part of it in which the thread cannot have run: the clock moved on by far more than
// the work takes that was done meanwhile. On a virtual machine that is time of the host, which an honest sampler
// misses, since no timer fires in it.
struct burnt {
  int64_t cpu, stolen;
};

#define CHUNK_LIMIT (MILLISECOND / 2)  // a chunk takes some 100 us

// To be inlined, so that the burning stands under the name of its caller.
static inline __attribute__((always_inline)) void burn(struct burnt *burnt, int64_t nanoseconds) {
  int64_t start = clock_of(CLOCK_THREAD_CPUTIME_ID), now = start, before;
  do {
    for (volatile int i = 0; i < 60000; i++)
      ;
    before = now;
    now = clock_of(CLOCK_THREAD_CPUTIME_ID);
    if (now - before > CHUNK_LIMIT) burnt->stolen += now - before;
  } while (now - start < nanoseconds);
  burnt->cpu += now - start;
}

// A function that only burns.
#define BURNER(name)                                                                       \
  __attribute__((noinline, noclone)) void name(struct burnt *burnt, int64_t nanoseconds) { \
    burn(burnt, nanoseconds);                                                              \
  }
