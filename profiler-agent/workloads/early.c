// A program without a C library that does all its work in its very first function: 300 ms, then it exits with code 7.
#include "burn.h"

__attribute__((noreturn)) void _start(void) {
  struct burnt burnt = {0, 0};
  int64_t spent = clock_of(CLOCK_PROCESS_CPUTIME_ID);
  burn(&burnt, 300 * MILLISECOND - spent);
  // Once more what nobody can have sampled; not for ever, as on a slow machine all of it looks like that.
  if (burnt.stolen > 0) burn(&burnt, burnt.stolen < 300 * MILLISECOND ? burnt.stolen : 300 * MILLISECOND);
  for (;;) system_call(SYS_exit_group, 7, 0, 0);
}
