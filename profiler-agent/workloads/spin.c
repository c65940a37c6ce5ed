// A library to spin in, for `rewriter`.
void spin_in_library(void);

__attribute__((noinline)) static void deeper(void) {
  for (volatile int i = 0; i < 1000000; i++)
    ;
}

void spin_in_library(void) {
  deeper();
  __asm__ volatile("");
}
