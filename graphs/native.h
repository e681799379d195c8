// The part of ONNX Runtime's C API that the Go binding does not reach.
//
// ONNX Runtime's interface is one table of function pointers that only grows at
// its end, so the place of a function never changes once released. gl_slot lists
// the places used here; slots_test.go compares them with the binding's header.
#ifndef GLIMPSE_NATIVE_H
#define GLIMPSE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

enum gl_slot {
  GL_GetErrorCode = 1,
  GL_GetErrorMessage = 2,
  GL_CreateEnvWithCustomLogger = 4,
  GL_Run = 9,
  GL_SessionGetInputCount = 30,
  GL_SessionGetOutputCount = 31,
  GL_SessionGetInputTypeInfo = 33,
  GL_SessionGetOutputTypeInfo = 34,
  GL_SessionGetInputName = 36,
  GL_SessionGetOutputName = 37,
  GL_CreateTensorWithDataAsOrtValue = 49,
  GL_CastTypeInfoToTensorInfo = 55,
  GL_GetTensorElementType = 60,
  GL_GetDimensionsCount = 61,
  GL_GetDimensions = 62,
  GL_GetSymbolicDimensions = 63,
  GL_CreateMemoryInfo = 68,
  GL_CreateCpuMemoryInfo = 69,
  GL_AllocatorFree = 76,
  GL_GetAllocatorWithDefaultOptions = 78,
  GL_ReleaseEnv = 92,
  GL_ReleaseStatus = 93,
  GL_ReleaseMemoryInfo = 94,
  GL_ReleaseValue = 96,
  GL_ReleaseTypeInfo = 98,
  GL_GetAvailableProviders = 125,
  GL_ReleaseAvailableProviders = 126,
  GL_SessionOptionsSetLoadCancellationFlag = 293,
};

#define GL_MAX_RANK 8

// A loaded library. api is null until gl_library_api found the asked version.
typedef struct {
  void *handle;
  void *base;
  const void *const *api;
  const char *version;
} gl_library;

// One input or output of a session. rank is -1 when the port is not a tensor.
typedef struct {
  char *name;
  int dtype;
  int64_t rank;
  int64_t dims[GL_MAX_RANK];
  char *symbols[GL_MAX_RANK];
} gl_port;

// A native tensor with the shape it was made from.
typedef struct {
  void *value;
  int64_t dims[GL_MAX_RANK];
} gl_value;

// Functions that can fail return null or a message that the caller frees.
char *gl_library_open(gl_library *lib, const char *path);
int gl_library_api(gl_library *lib, uint32_t version);
char *gl_library_path(const gl_library *lib);
void gl_library_close(gl_library *lib);

char *gl_providers(const void *const *api, char ***names, int *count);
void gl_providers_free(const void *const *api, char **names, int count);

char *gl_env_create(const void *const *api, int severity, void **env);
void gl_env_release(const void *const *api, void *env);
char *gl_memory_info_create(const void *const *api, void **info);
char *gl_place_info_create(const void *const *api, const char *allocator, int id, void **info);
void gl_memory_info_release(const void *const *api, void *info);

// Replaces v->value by a tensor of v->dims over data; on failure v keeps what it had.
char *gl_value_make(const void *const *api, void *memory_info, gl_value *v, void *data, size_t bytes, size_t rank,
                    int dtype);
void gl_value_free(const void *const *api, gl_value *v);

char *gl_session_count(const void *const *api, void *session, int output, size_t *count);
char *gl_session_port(const void *const *api, void *session, int output, size_t index, gl_port *port);
void gl_port_free(gl_port *port);
char *gl_session_run(const void *const *api, void *session, void *run_options, char **input_names, void **inputs,
                     size_t input_count, char **output_names, void **outputs, size_t output_count);
char *gl_cancel_load(const void *const *api, void *session_options);

void *gl_signals_save(void);
// Puts handlers back that changed since; a bit a signal number says which.
uint64_t gl_signals_restore(void *saved);

#endif
