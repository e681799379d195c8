// A CUDA runtime without a GPU, for the tests of cuda.go: its memory is the process's, of which device 0 has 64 MiB and device 1 half
// of that. It keeps the rules that cuda.go relies on: memory belongs to the device that was set on the thread, freed memory is no
// memory, rows are at least as far apart as they are wide, and an error stays until it is asked for.
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 2, BLOCKS = 64, OUT_OF_MEMORY = 2, INVALID = 1, NO_DEVICE = 101 };

static const size_t limit[DEVICES] = {64 << 20, 32 << 20};
static size_t used[DEVICES];
static struct {
  void *start;
  size_t size;
  int device;
} blocks[BLOCKS];
static _Thread_local int device;
static int last, unsynchronized;

static int result(int code) {
  if (code) last = code;
  return code;
}

int cudaGetDeviceCount(int *count) {
  *count = DEVICES;
  return 0;
}

int cudaSetDevice(int d) {
  if (d < 0 || d >= DEVICES) return result(NO_DEVICE);
  device = d;
  return 0;
}

int cudaMalloc(void **memory, size_t bytes) {
  if (bytes > limit[device] - used[device]) return result(OUT_OF_MEMORY);
  for (int i = 0; i < BLOCKS; i++) {
    if (blocks[i].start) continue;
    if (posix_memalign(memory, 256, bytes)) return result(OUT_OF_MEMORY);
    memset(*memory, 0xa5, bytes);
    blocks[i].start = *memory;
    blocks[i].size = bytes;
    blocks[i].device = device;
    used[device] += bytes;
    return 0;
  }
  return result(OUT_OF_MEMORY);
}

int cudaFree(void *memory) {
  for (int i = 0; i < BLOCKS; i++) {
    if (blocks[i].start != memory || blocks[i].device != device) continue;
    used[device] -= blocks[i].size;
    free(memory);
    blocks[i].start = NULL;
    return 0;
  }
  return result(INVALID);
}

int cudaMemset(void *memory, int value, size_t bytes) {
  memset(memory, value, bytes);
  return 0;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  if (kind != 4) return result(INVALID);
  unsynchronized = 1;
  memcpy(to, from, bytes);
  return 0;
}

int cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, int kind) {
  if (kind != 4 || width > to_pitch || width > from_pitch) return result(INVALID);
  unsynchronized = 1;
  for (size_t i = 0; i < rows; i++) memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
  return 0;
}

int cudaStreamSynchronize(void *stream) {
  if (stream) return result(INVALID);
  unsynchronized = 0;
  return 0;
}

// Unlike CUDA's it fails while an error was not asked for or a copy not waited for: tests ask it for that.
int cudaMemGetInfo(size_t *available, size_t *total) {
  if (last || unsynchronized) return last ? last : INVALID;
  *available = limit[device] - used[device];
  *total = limit[device];
  return 0;
}

int cudaGetLastError(void) {
  int code = last;
  last = 0;
  return code;
}

const char *cudaGetErrorString(int code) {
  switch (code) {
    case OUT_OF_MEMORY: return "out of memory";
    case NO_DEVICE: return "invalid device ordinal";
  }
  return "invalid argument";
}
