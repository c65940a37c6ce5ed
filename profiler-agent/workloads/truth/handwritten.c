// Call frame information as people write it by hand, and what compilers do at the edges.
#include "truth.h"

#include <setjmp.h>

#define SPIN 10000000

FRAME void burn_below_deref_rsp(void) { BURN(SLICE); }
FRAME void burn_below_deref_rbp(void) { BURN(SLICE); }
FRAME void burn_below_root(void) { BURN(SLICE); }
FRAME void burn_below_last_call(void) { BURN(SLICE); }

void deref_rsp(void (*function)(void));
void deref_rbp(void (*function)(void));
void leaf_in_r10(long rounds);
void leaf_in_r11(long rounds);
void leaf_in_rax(long rounds);
void root_without_return(void *stack, void (*function)(void));
void ends_in_call(void);

__asm__(
    ".text\n"
    // The stack pointer of the caller is kept 32 bytes above an aligned one, as in OpenSSL's assembly.
    ".type deref_rsp, @function\n"
    "deref_rsp:\n"
    ".cfi_startproc\n"
    "  mov %rsp, %rax\n"
    "  .cfi_def_cfa_register %rax\n"
    "  sub $104, %rsp\n"
    "  and $-64, %rsp\n"
    "  mov %rax, 32(%rsp)\n"
    "  .cfi_escape 0x0f, 5, 0x77, 32, 0x06, 0x23, 8\n"  // def_cfa_expression: rsp + 32, deref, + 8
    "  call *%rdi\n"
    "  mov 32(%rsp), %rsp\n"
    "  .cfi_def_cfa %rsp, 8\n"
    "  ret\n"
    ".cfi_endproc\n"
    ".size deref_rsp, . - deref_rsp\n"
    // The same below a frame pointer that belongs to an aligned stack.
    ".type deref_rbp, @function\n"
    "deref_rbp:\n"
    ".cfi_startproc\n"
    "  mov %rsp, %r10\n"
    "  .cfi_def_cfa_register %r10\n"
    "  and $-64, %rsp\n"
    "  push %rbp\n"
    "  mov %rsp, %rbp\n"
    "  .cfi_escape 0x10, 6, 2, 0x76, 0\n"  // expression: the caller's rbp is at rbp
    "  push %r10\n"
    "  .cfi_escape 0x0f, 5, 0x76, 0x78, 0x06, 0x23, 8\n"  // def_cfa_expression: rbp - 8, deref, + 8
    "  sub $56, %rsp\n"
    "  call *%rdi\n"
    "  mov -8(%rbp), %r10\n"
    "  .cfi_def_cfa %r10, 8\n"
    "  mov (%rbp), %rbp\n"
    "  .cfi_same_value %rbp\n"
    "  mov %r10, %rsp\n"
    "  .cfi_def_cfa %rsp, 8\n"
    "  ret\n"
    ".cfi_endproc\n"
    ".size deref_rbp, . - deref_rbp\n"
    // Leaves that keep the caller's stack pointer in a register.
#define LEAF(name, register)             \
  ".type " name ", @function\n"          \
  name ":\n"                             \
  ".cfi_startproc\n"                     \
  "  mov %rsp, " register "\n"           \
  "  .cfi_def_cfa_register " register "\n" \
  "  sub $72, %rsp\n"                    \
  "  and $-64, %rsp\n"                   \
  "1:\n"                                 \
  "  sub $1, %rdi\n"                     \
  "  jnz 1b\n"                           \
  "  mov " register ", %rsp\n"           \
  "  .cfi_def_cfa_register %rsp\n"       \
  "  ret\n"                              \
  ".cfi_endproc\n"                       \
  ".size " name ", . - " name "\n"
    LEAF("leaf_in_r10", "%r10") LEAF("leaf_in_r11", "%r11") LEAF("leaf_in_rax", "%rax")
    // Nobody called it: it says so, and what lies above it on its stack is no return address.
    ".type root_without_return, @function\n"
    "root_without_return:\n"
    ".cfi_startproc\n"
    "  push %rbx\n"
    "  .cfi_adjust_cfa_offset 8\n"
    "  .cfi_rel_offset %rbx, 0\n"
    "  mov %rsp, %rbx\n"
    "  mov %rdi, %rsp\n"
    "  .cfi_undefined %rip\n"
    "  call *%rsi\n"
    "  mov %rbx, %rsp\n"
    "  .cfi_restore %rip\n"
    "  pop %rbx\n"
    "  .cfi_adjust_cfa_offset -8\n"
    "  .cfi_restore %rbx\n"
    "  ret\n"
    ".cfi_endproc\n"
    ".size root_without_return, . - root_without_return\n"
    // The call does not return, so it is the last instruction: its return address is the next function's, whose frame is another one.
    ".type ends_in_call, @function\n"
    "ends_in_call:\n"
    ".cfi_startproc\n"
    "  sub $40, %rsp\n"
    "  .cfi_adjust_cfa_offset 40\n"
    "  call never_returns\n"
    ".cfi_endproc\n"
    ".size ends_in_call, . - ends_in_call\n"
    ".type next_function, @function\n"
    "next_function:\n"
    ".cfi_startproc\n"
    "  ret\n"
    ".cfi_endproc\n"
    ".size next_function, . - next_function\n");

static jmp_buf landing;

__attribute__((used, noreturn)) FRAME void never_returns(void) {
  burn_below_last_call();
  longjmp(landing, 1);
}

FRAME void last_call(void) {
  if (!setjmp(landing)) ends_in_call();
}

FRAME void on_stack_of_junk(void) {
  static __attribute__((aligned(64))) uint64_t stack[8192];
  for (int i = 0; i < 8192; i++) stack[i] = 0x6a756e6b6a756e6b;
  root_without_return(stack + 8000, burn_below_root);
}

int main(void) {
  MORTAL();
  for (;;) {
    deref_rsp(burn_below_deref_rsp);
    deref_rbp(burn_below_deref_rbp);
    leaf_in_r10(SPIN);
    leaf_in_r11(SPIN);
    leaf_in_rax(SPIN);
    on_stack_of_junk();
    last_call();
  }
}
