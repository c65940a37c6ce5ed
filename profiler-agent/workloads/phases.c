// Does one thing after the other, by the clock on the wall: A, B, A, C, for as many milliseconds each as its argument says.
#include <stdlib.h>
#include <time.h>

static volatile unsigned long sink;

#define PHASE(name)                              \
    __attribute__((noipa)) static void name(void) { \
        for (int i = 0; i < 100000; i++) sink++;    \
    }
PHASE(phase_a)
PHASE(phase_b)
PHASE(phase_c)

int main(int count, char **arguments) {
    long length = count > 1 ? atol(arguments[1]) : 10000;
    void (*const phases[])(void) = {phase_a, phase_b, phase_a, phase_c};
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        long milliseconds = now.tv_sec * 1000 + now.tv_nsec / 1000000;
        phases[milliseconds / length % 4]();
    }
}
