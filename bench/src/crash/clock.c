/* A wall clock that steps, for `omnify-bench crash` only.
 *
 * Loaded before the C library (LD_PRELOAD): CLOCK_REALTIME is the system's plus the seconds in the
 * first eight bytes of the file that CRASH_CLOCK names, whenever they change. All other clocks are
 * the system's. So the program under test is the one that is shipped, without a switch for tests.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const _Atomic int64_t none;
static const _Atomic int64_t *offset_s = &none;

__attribute__((constructor)) static void map_offset(void) {
  const char *path = getenv("CRASH_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *at = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (at != MAP_FAILED) offset_s = at;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = (int)syscall(SYS_clock_gettime, clock, at);
  if (!failed && clock == CLOCK_REALTIME) at->tv_sec += (time_t)atomic_load(offset_s);
  return failed;
}
