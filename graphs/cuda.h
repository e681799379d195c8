// The part of the CUDA runtime that device memory needs. The library is loaded when a session runs on CUDA and never linked, so
// that a program without a GPU needs none. Its functions and their numbers have been the same since CUDA 4.
#ifndef GLIMPSE_CUDA_H
#define GLIMPSE_CUDA_H

#include <stddef.h>

typedef struct {
  int (*count)(int *);
  int (*set_device)(int);
  int (*alloc)(void **, size_t);
  int (*release)(void *);
  int (*set)(void *, int, size_t);
  int (*copy)(void *, const void *, size_t, int);
  int (*copy_rows)(void *, size_t, const void *, size_t, size_t, size_t, int);
  int (*synchronize)(void *stream);
  int (*info)(size_t *, size_t *);
  int (*last_error)(void);
  const char *(*error_text)(int);
} gl_cuda;

// Functions return null or a message that the caller frees.
char *gl_cuda_open(gl_cuda *cuda, const char *library);
char *gl_cuda_count(const gl_cuda *cuda, int *devices);
char *gl_cuda_alloc(const gl_cuda *cuda, int device, size_t bytes, void **memory);
char *gl_cuda_free(const gl_cuda *cuda, int device, void *memory);
char *gl_cuda_copy(const gl_cuda *cuda, int device, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                   size_t width, size_t rows);
char *gl_cuda_synchronize(const gl_cuda *cuda, int device);
char *gl_cuda_available(const gl_cuda *cuda, int device, size_t *bytes);

// Loads a library and says what the system's loader says. It stays loaded.
char *gl_load(const char *path);

#endif
