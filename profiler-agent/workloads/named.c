// Burns CPU time in a function whose name is given when this is compiled, for ever or for so many milliseconds.
//
//   cc -DFUNCTION=name named.c
#include "burn.h"

BURNER(FUNCTION)

int main(int argc, char **argv) {
  struct burnt burnt = {0};
  int64_t milliseconds = argc > 1 ? atoll(argv[1]) : 0;
  do FUNCTION(&burnt, (milliseconds ? milliseconds : 10) * MILLISECOND);
  while (!milliseconds);
  return 0;
}
