/* Preloaded: fsync, flock and the wall clock as a strange disk or machine has them.
 *
 * FAULT_FSYNC_FOLDER, FAULT_FSYNC_FILE, FAULT_FLOCK: the number of the error that each call fails with.
 * FAULT_CLOCK: seconds by which the wall clock jumps, forth and back, every 50th time that somebody looks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

static int given(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

static int fails(int error) {
    if (error) errno = error;
    return error;
}

static int sync_fails(int descriptor) {
    struct stat state;
    int folder = fstat(descriptor, &state) == 0 && S_ISDIR(state.st_mode);
    return fails(given(folder ? "FAULT_FSYNC_FOLDER" : "FAULT_FSYNC_FILE"));
}

int fsync(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return sync_fails(descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return sync_fails(descriptor) ? -1 : real(descriptor);
}

int flock(int descriptor, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return fails(given("FAULT_FLOCK")) ? -1 : real(descriptor, operation);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int looks;
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, now);
    if (clock == CLOCK_REALTIME && ++looks / 50 % 2) now->tv_sec += given("FAULT_CLOCK");
    return done;
}
