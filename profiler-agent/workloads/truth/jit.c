// jit anonymous|memfd: machine code made at run time, with frame pointers and without tables, between functions with tables and without
// frame pointers; two levels of it.
#include "truth.h"

#include <string.h>
#include <sys/mman.h>

typedef void Function(void);

static const unsigned char CALLER[] = {
    0x55,                    // push %rbp
    0x48, 0x89, 0xe5,        // mov %rsp, %rbp
    0x48, 0x83, 0xec, 0x20,  // sub $32, %rsp
    0xff, 0xd7,              // call *%rdi
    0xc9,                    // leave
    0xc3,                    // ret
};
static const unsigned char BURNER[] = {
    0x55,                    // push %rbp
    0x48, 0x89, 0xe5,        // mov %rsp, %rbp
    0xff, 0xcf,              // 1: dec %edi
    0x75, 0xfc,              // jnz 1b
    0x5d,                    // pop %rbp
    0xc3,                    // ret
};

static void (*caller)(Function *);
static void (*burner)(int);

// In code without frame pointers rbp is a register as any other.
#define USE_RBP() __asm__ volatile("mov $0x6a756e6b, %%ebp" : : : "rbp")

FRAME void burn_below_code(void) { BURN(SLICE); }

FRAME void between(void) {
  USE_RBP();
  caller(burn_below_code);
  __asm__ volatile("");
}

FRAME void burn_in_code(void) {
  USE_RBP();
  burner(5000000);
  __asm__ volatile("");
}

FRAME void outermost(Function *function) {
  USE_RBP();
  caller(function);
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  MORTAL();
  if (argc != 2) return 2;
  unsigned char *code;
  if (!strcmp(argv[1], "memfd")) {
    int file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, 4096)) return 1;
    unsigned char *room = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    memcpy(room, CALLER, sizeof CALLER);
    memcpy(room + 64, BURNER, sizeof BURNER);
    munmap(room, 4096);
    code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
  } else {
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(code, CALLER, sizeof CALLER);
    memcpy(code + 64, BURNER, sizeof BURNER);
    mprotect(code, 4096, PROT_READ | PROT_EXEC);
  }
  if (code == MAP_FAILED) return 1;
  caller = (void (*)(Function *))code;
  burner = (void (*)(int))(code + 64);
  for (;;) {
    outermost(between);
    outermost(burn_in_code);
  }
}
