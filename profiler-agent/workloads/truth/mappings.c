// 5,000 executable mappings, and code in each of them that is called in turn.
#include "truth.h"

#include <string.h>
#include <sys/mman.h>

#define MAPPINGS 5000

typedef void Function(void);

static const unsigned char CALLER[] = {
    0x55,              // push %rbp
    0x48, 0x89, 0xe5,  // mov %rsp, %rbp
    0xff, 0xd7,        // call *%rdi
    0x5d,              // pop %rbp
    0xc3,              // ret
};

FRAME void burn_below_mapping(void) { BURN(SLICE / 4); }

FRAME void call(void (*caller)(Function *)) {
  caller(burn_below_mapping);
  __asm__ volatile("");
}

int main(void) {
  MORTAL();
  static void (*callers[MAPPINGS])(Function *);
  for (int i = 0; i < MAPPINGS; i++) {
    // The second page keeps its right to be written, so that no two mappings become one.
    unsigned char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return 1;
    memcpy(pages, CALLER, sizeof CALLER);
    if (mprotect(pages, 4096, PROT_READ | PROT_EXEC)) return 1;
    callers[i] = (void (*)(Function *))pages;
  }
  for (;;)
    // Not in the order of their addresses.
    for (int i = 0; i < MAPPINGS; i++) call(callers[i * 7L % MAPPINGS]);
}
