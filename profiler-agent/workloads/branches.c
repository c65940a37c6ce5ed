// Goes one of two ways at each of 20 levels, by the bits of a number that changes every tenth of a millisecond: a million distinct stacks.
//
//     branches SECONDS
#include <stdlib.h>
#include <time.h>

static volatile unsigned long sink;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void left(unsigned long way, int depth);
static void right(unsigned long way, int depth);

static void go(unsigned long way, int depth) {
    if (depth == 0) {
        for (int turn = 0; turn < 100000; turn++) {
            sink += turn;
        }
    } else if (way & 1) {
        right(way >> 1, depth - 1);
    } else {
        left(way >> 1, depth - 1);
    }
    sink++;
}

__attribute__((noinline)) static void left(unsigned long way, int depth) {
    go(way, depth);
    sink++;
}

__attribute__((noinline)) static void right(unsigned long way, int depth) {
    go(way, depth);
    sink += 2;
}

int main(int count, char **arguments) {
    double end = now() + (count > 1 ? atof(arguments[1]) : 1);
    unsigned long way = 1;
    while (now() < end) {
        way = way * 6364136223846793005UL + 1442695040888963407UL;
        left(way >> 40, 20);
    }
    return 0;
}
