// Has half a gigabyte of memory in small pages when it ends: the kernel takes long to give that back.
#include <sys/mman.h>
#include <unistd.h>

#define BYTES (512L << 20)

int main(void) {
  char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  madvise(memory, BYTES, MADV_NOHUGEPAGE);
  for (long page = 0; page < BYTES; page += 4096) memory[page] = 1;
  _exit(0);
}
