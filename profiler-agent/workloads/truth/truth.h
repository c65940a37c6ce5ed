// What the truth programs share. Each burns CPU time below chains of functions that are known for certain, case after case, until it is
// ended; tests/truth.rs lists the chains and the flags.
#pragma once
#include "../burn.h"

// A frame of its own and under its own name.
#define FRAME __attribute__((noinline, noclone))

// What one case burns before the next one's turn. Odd, so that the cases do not run in step with a clock.
#define SLICE (3700 * MILLISECOND / 1000)

// Burns under the name of the function that this stands in.
#define BURN(nanoseconds)           \
  do {                              \
    struct burnt burnt = {0, 0};    \
    burn(&burnt, nanoseconds);      \
  } while (0)

// Keeps GCC from knowing what a value is.
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

// Whatever becomes of who started it.
#define MORTAL() alarm(120)
