// copy MILLISECONDS: what `dd if=/dev/zero of=/dev/null` does, nearly all of it in the kernel.
#include "burn.h"

#include <fcntl.h>

static char block[64 << 10];

__attribute__((noinline, noclone)) void copy_block(int from, int to) {
  WITH_FRAME();
  long length = system_call(SYS_read, from, (long)block, sizeof block);
  system_call(SYS_write, to, (long)block, length);
}

__attribute__((noinline, noclone)) void copy_for(int64_t nanoseconds) {
  int from = open("/dev/zero", O_RDONLY), to = open("/dev/null", O_WRONLY);
  while (clock_of(CLOCK_THREAD_CPUTIME_ID) < nanoseconds)
    for (int i = 0; i < 64; i++) copy_block(from, to);
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  copy_for(atoll(argv[1]) * MILLISECOND);
  return 0;
}
