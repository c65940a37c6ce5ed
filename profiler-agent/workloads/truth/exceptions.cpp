// Exceptions: what runs while one is under way, and the unwinder itself.
#include "truth.h"

#include <csetjmp>
#include <cstring>
#include <exception>
#include <unwind.h>

FRAME void burn_in_destructor() { BURN(SLICE); }
FRAME void burn_in_handler() { BURN(SLICE); }
FRAME void burn_in_what() { BURN(SLICE); }
FRAME void burn_in_stop() { BURN(SLICE); }
FRAME void burn_in_trace() { BURN(SLICE); }

struct Told : std::exception {
  const char *what() const noexcept override;
};
FRAME const char *Told::what() const noexcept {
  burn_in_what();
  return "told";
}

struct Guard {
  ~Guard();
};
FRAME Guard::~Guard() { burn_in_destructor(); }

struct Light {
  ~Light();
};
FRAME Light::~Light() { __asm__ volatile(""); }

FRAME void thrower(int kind) {
  if (kind) throw Told();
}

FRAME void guarded(int kind) {
  Guard guard;
  thrower(kind);
}

FRAME void lightly_guarded(int kind) {
  Light light;
  thrower(kind);
}

FRAME void in_destructor() {
  try {
    guarded(1);
  } catch (const Told &) {
  }
}

FRAME void in_handler() {
  try {
    thrower(1);
  } catch (const Told &) {
    burn_in_handler();
  }
}

FRAME void rethrower() {
  try {
    thrower(1);
  } catch (...) {
    throw;
  }
}

FRAME void in_what() {
  try {
    rethrower();
  } catch (const std::exception &told) {
    if (std::strlen(told.what()) != 4) std::terminate();
  }
}

// A storm: the time is spent in _Unwind_RaiseException and _Unwind_Resume.
FRAME void in_unwinder() {
  int64_t start = clock_of(CLOCK_THREAD_CPUTIME_ID);
  while (clock_of(CLOCK_THREAD_CPUTIME_ID) - start < SLICE) {
    try {
      lightly_guarded(1);
    } catch (const Told &) {
    }
  }
}

// A forced unwinding, as of a thread that is cancelled: the unwinder calls back for each frame, and once more at the end of the stack.
static jmp_buf *landing;
FRAME _Unwind_Reason_Code stop(int, _Unwind_Action actions, _Unwind_Exception_Class, _Unwind_Exception *,
                               _Unwind_Context *, void *) {
  burn_in_stop();
  (void)actions;
  std::longjmp(*landing, 1);
}
FRAME void force(_Unwind_Exception *exception) { _Unwind_ForcedUnwind(exception, stop, nullptr); }
FRAME void in_stop() {
  _Unwind_Exception exception;
  std::memset(&exception, 0, sizeof exception);
  jmp_buf here;
  landing = &here;
  if (!setjmp(here)) force(&exception);
}

FRAME _Unwind_Reason_Code trace(_Unwind_Context *, void *) {
  burn_in_trace();
  return _URC_END_OF_STACK;
}
FRAME void in_trace() { _Unwind_Backtrace(trace, nullptr); }

int main() {
  MORTAL();
  for (;;) {
    in_destructor();
    in_handler();
    in_what();
    in_unwinder();
    in_stop();
    in_trace();
  }
}
