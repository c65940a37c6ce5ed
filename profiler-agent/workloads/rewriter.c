// Hurts whoever reads its files: spins in a library that it has mapped, and meanwhile truncates, grows and rewrites the
// file of that library behind its code, and the file with its debug information altogether.
//
//   rewriter LIBRARY DEBUG_FILE KEEP      KEEP: bytes from the start that the running code needs
#include "burn.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

struct file {
  const char *path;
  char *bytes;
  off_t size, keep;
};

static struct file read_file(const char *path, off_t keep) {
  struct file file = {.path = path, .keep = keep};
  struct stat stat;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &stat) != 0 || !(file.bytes = malloc(stat.st_size))) exit(1);
  file.size = stat.st_size;
  if (pread(fd, file.bytes, file.size, 0) != file.size) exit(1);
  close(fd);
  return file;
}

static void must(int ok) {
  if (!ok) exit(1);
}

static void hurt(const struct file *file, int turn) {
  static char garbage[64 << 10];
  int fd = open(file->path, O_WRONLY);
  off_t behind = file->size - file->keep;
  must(fd >= 0);
  switch (turn % 5) {
    case 0:
      must(ftruncate(fd, file->keep) == 0);
      break;
    case 1:
      must(ftruncate(fd, file->keep + behind / 2) == 0);
      break;
    case 2:
      must(ftruncate(fd, file->size + (off_t)(64 << 20)) == 0);
      break;
    case 3:
      for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = rand();
      for (off_t at = file->keep; at < file->size; at += sizeof garbage) must(pwrite(fd, garbage, sizeof garbage, at) > 0);
      break;
    default:
      must(pwrite(fd, file->bytes + file->keep, behind, file->keep) == behind);
      must(ftruncate(fd, file->size) == 0);
  }
  close(fd);
}

static void *rewrite(void *files) {
  for (int turn = 0;; turn++) {
    hurt((struct file *)files, turn);
    hurt((struct file *)files + 1, turn + 2);
    usleep(rand() % 3000);
  }
  return 0;
}

int main(int argc, char **argv) {
  must(argc == 4);
  struct file files[2] = {read_file(argv[1], strtol(argv[3], 0, 10)), read_file(argv[2], 0)};
  void *library = dlopen(argv[1], RTLD_NOW);
  must(library != 0);
  void (*spin)(void) = (void (*)(void))dlsym(library, "spin_in_library");
  must(spin != 0);
  pthread_t thread;
  must(pthread_create(&thread, 0, rewrite, files) == 0);
  for (;;) spin();
}
