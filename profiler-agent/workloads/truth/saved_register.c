// Functions whose callers are found through a register that their callees save: `_dl_runtime_resolve` of the dynamic linker keeps its
// stack pointer in rbx like this.
#include "truth.h"

FRAME void burn_below_rbx(void) { BURN(SLICE); }
// Saves rbx itself and uses it for something else.
FRAME void saves_rbx(void) {
  __asm__ volatile("mov $0x6a756e6b, %%ebx" : : : "rbx");
  burn_below_rbx();
  __asm__ volatile("" : : : "rbx");
}

void in_rbx(void (*function)(void));

__asm__(
    ".text\n"
    ".type in_rbx, @function\n"
    "in_rbx:\n"
    ".cfi_startproc\n"
    "  push %rbx\n"
    "  .cfi_adjust_cfa_offset 8\n"
    "  .cfi_rel_offset %rbx, 0\n"
    "  mov %rsp, %rbx\n"
    "  .cfi_def_cfa_register %rbx\n"
    "  and $-64, %rsp\n"
    "  call *%rdi\n"
    "  mov %rbx, %rsp\n"
    "  .cfi_def_cfa_register %rsp\n"
    "  pop %rbx\n"
    "  .cfi_adjust_cfa_offset -8\n"
    "  .cfi_restore %rbx\n"
    "  ret\n"
    ".cfi_endproc\n"
    ".size in_rbx, . - in_rbx\n");

int main(void) {
  MORTAL();
  for (;;) {
    in_rbx(burn_below_rbx);
    in_rbx(saves_rbx);
  }
}
