// See cuda.h. The device in use belongs to the thread, and the goroutine that calls may be on another one each time: every function
// says which device it means.
#define _GNU_SOURCE
#include "cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// cudaMemcpyDefault: the addresses say which side is where.
#define ANY_DIRECTION 4

static char *text(const char *why) { return strdup(why ? why : "unknown reason"); }

char *gl_load(const char *path) {
  void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  return handle ? NULL : text(dlerror());
}

char *gl_cuda_open(gl_cuda *cuda, const char *library) {
  void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return text(dlerror());
  struct {
    void **to;
    const char *name;
  } wanted[] = {
      {(void **)&cuda->count, "cudaGetDeviceCount"},
      {(void **)&cuda->set_device, "cudaSetDevice"},   {(void **)&cuda->alloc, "cudaMalloc"},
      {(void **)&cuda->release, "cudaFree"},           {(void **)&cuda->set, "cudaMemset"},
      {(void **)&cuda->copy, "cudaMemcpy"},            {(void **)&cuda->copy_rows, "cudaMemcpy2D"},
      {(void **)&cuda->synchronize, "cudaStreamSynchronize"}, {(void **)&cuda->info, "cudaMemGetInfo"},
      {(void **)&cuda->last_error, "cudaGetLastError"},       {(void **)&cuda->error_text, "cudaGetErrorString"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
    *wanted[i].to = dlsym(handle, wanted[i].name);
    if (!*wanted[i].to) return text(dlerror());
  }
  return NULL;
}

// failed turns a result into a message and clears it, so that ONNX Runtime does not take it for its own.
static char *failed(const gl_cuda *cuda, int result, const char *what) {
  if (!result) return NULL;
  char *message = NULL;
  cuda->last_error();
  if (asprintf(&message, "CUDA failure %d: %s: %s", result, what, cuda->error_text(result)) < 0) return text(what);
  return message;
}

char *gl_cuda_count(const gl_cuda *cuda, int *devices) {
  return failed(cuda, cuda->count(devices), "cudaGetDeviceCount");
}

char *gl_cuda_alloc(const gl_cuda *cuda, int device, size_t bytes, void **memory) {
  char *why = failed(cuda, cuda->set_device(device), "cudaSetDevice");
  if (why) return why;
  why = failed(cuda, cuda->alloc(memory, bytes), "cudaMalloc");
  if (why) return why;
  why = failed(cuda, cuda->set(*memory, 0, bytes), "cudaMemset");
  if (!why) why = failed(cuda, cuda->synchronize(NULL), "cudaStreamSynchronize");
  if (why) cuda->release(*memory);
  return why;
}

char *gl_cuda_free(const gl_cuda *cuda, int device, void *memory) {
  char *why = failed(cuda, cuda->set_device(device), "cudaSetDevice");
  return why ? why : failed(cuda, cuda->release(memory), "cudaFree");
}

char *gl_cuda_copy(const gl_cuda *cuda, int device, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                   size_t width, size_t rows) {
  char *why = failed(cuda, cuda->set_device(device), "cudaSetDevice");
  if (why) return why;
  if (rows == 1) return failed(cuda, cuda->copy(to, from, width, ANY_DIRECTION), "cudaMemcpy");
  return failed(cuda, cuda->copy_rows(to, to_pitch, from, from_pitch, width, rows, ANY_DIRECTION), "cudaMemcpy2D");
}

// The null stream, which copies of gl_cuda_copy are on: pictures that another stream works on are not waited for.
char *gl_cuda_synchronize(const gl_cuda *cuda, int device) {
  char *why = failed(cuda, cuda->set_device(device), "cudaSetDevice");
  return why ? why : failed(cuda, cuda->synchronize(NULL), "cudaStreamSynchronize");
}

char *gl_cuda_available(const gl_cuda *cuda, int device, size_t *bytes) {
  size_t total = 0;
  char *why = failed(cuda, cuda->set_device(device), "cudaSetDevice");
  return why ? why : failed(cuda, cuda->info(bytes, &total), "cudaMemGetInfo");
}
