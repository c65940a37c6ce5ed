// stubborn PIDFILE: burns for a minute, and takes no SIGTERM and no SIGINT for an answer.
#include "burn.h"

#include <signal.h>

BURNER(never_mind)

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  signal(SIGTERM, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  FILE *file = fopen(argv[1], "w");
  if (!file) return 1;
  fprintf(file, "%d\n", (int)getpid());
  fclose(file);
  struct burnt burnt = {0, 0};
  never_mind(&burnt, 60 * SECOND);
  return 0;
}
