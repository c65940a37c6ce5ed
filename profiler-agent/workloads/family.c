// family MILLISECONDS ROUNDS: a process, its child and its grandchild, each of which burns CPU time under a name of its
// own; and so again.
//
// The child is a fork; the grandchild runs this program anew, as a shell's commands do.
#include "burn.h"

#include <string.h>
#include <sys/wait.h>

BURNER(generation_one)
BURNER(generation_two)
BURNER(generation_three)

__attribute__((noinline, noclone)) int one_round(char **argv, int64_t nanoseconds) {
  struct burnt burnt = {0, 0};
  pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    pid_t grandchild = fork();
    if (grandchild < 0) _exit(1);
    if (grandchild == 0) {
      execl(argv[0], argv[0], argv[1], "grandchild", NULL);
      _exit(1);
    }
    generation_two(&burnt, nanoseconds);
    waitpid(grandchild, NULL, 0);
    _exit(0);
  }
  generation_one(&burnt, nanoseconds);
  waitpid(child, NULL, 0);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int64_t nanoseconds = atoll(argv[1]) * MILLISECOND;
  if (!strcmp(argv[2], "grandchild")) {
    struct burnt burnt = {0, 0};
    generation_three(&burnt, nanoseconds);
    return 0;
  }
  for (int rounds = atoi(argv[2]); rounds > 0; rounds--)
    if (one_round(argv, nanoseconds)) return 1;
  return 0;
}
