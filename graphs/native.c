// See native.h. No state lives here: the table travels as an argument.
#define _GNU_SOURCE
#include "native.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"

typedef struct {
  const void *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} api_base;

#define CALL(slot, type) ((type)api[slot])

// Turns a status into a message of ours and releases it.
static char *message(const void *const *api, void *status) {
  if (!status) return NULL;
  char *text = strdup(CALL(GL_GetErrorMessage, const char *(*)(const void *))(status));
  CALL(GL_ReleaseStatus, void (*)(void *))(status);
  return text;
}

char *gl_library_open(gl_library *lib, const char *path) {
  memset(lib, 0, sizeof *lib);
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *why = dlerror();
    return strdup(why ? why : "dlopen failed");
  }
  const api_base *(*get_base)(void) = (const api_base *(*)(void))dlsym(handle, "OrtGetApiBase");
  const api_base *base = get_base ? get_base() : NULL;
  if (!base) {
    dlclose(handle);
    return strdup("is not ONNX Runtime: it has no OrtGetApiBase");
  }
  lib->handle = handle;
  lib->base = (void *)base;
  lib->version = base->get_version();
  return NULL;
}

int gl_library_api(gl_library *lib, uint32_t version) {
  lib->api = ((const api_base *)lib->base)->get_api(version);
  return lib->api != NULL;
}

char *gl_library_path(const gl_library *lib) {
  Dl_info info;
  if (!dladdr(dlsym(lib->handle, "OrtGetApiBase"), &info) || !info.dli_fname) return NULL;
  return strdup(info.dli_fname);
}

void gl_library_close(gl_library *lib) {
  if (lib->handle) dlclose(lib->handle);
  memset(lib, 0, sizeof *lib);
}

char *gl_providers(const void *const *api, char ***names, int *count) {
  return message(api, CALL(GL_GetAvailableProviders, void *(*)(char ***, int *))(names, count));
}

void gl_providers_free(const void *const *api, char **names, int count) {
  message(api, CALL(GL_ReleaseAvailableProviders, void *(*)(char **, int))(names, count));
}

static void on_log(void *param, int severity, const char *category, const char *log_id, const char *location,
                   const char *text) {
  (void)param;
  (void)log_id;
  glimpseGraphsLog(severity, (char *)category, (char *)location, (char *)text);
}

typedef void (*log_function)(void *, int, const char *, const char *, const char *, const char *);

char *gl_env_create(const void *const *api, int severity, void **env) {
  return message(api, CALL(GL_CreateEnvWithCustomLogger, void *(*)(log_function, void *, int, const char *, void **))(
                          on_log, NULL, severity, "glimpse", env));
}

void gl_env_release(const void *const *api, void *env) { CALL(GL_ReleaseEnv, void (*)(void *))(env); }

char *gl_memory_info_create(const void *const *api, void **info) {
  // OrtArenaAllocator = 1, OrtMemTypeDefault = 0: "this is ordinary memory".
  return message(api, CALL(GL_CreateCpuMemoryInfo, void *(*)(int, int, void **))(1, 0, info));
}

char *gl_place_info_create(const void *const *api, const char *allocator, int id, void **info) {
  // OrtDeviceAllocator = 0, OrtMemTypeDefault = 0: memory that the device computes in.
  return message(api, CALL(GL_CreateMemoryInfo, void *(*)(const char *, int, int, int, void **))(allocator, 0, id, 0, info));
}

void gl_memory_info_release(const void *const *api, void *info) {
  CALL(GL_ReleaseMemoryInfo, void (*)(void *))(info);
}

char *gl_value_make(const void *const *api, void *memory_info, gl_value *v, void *data, size_t bytes, size_t rank,
                    int dtype) {
  void *value = NULL;
  char *why = message(api, CALL(GL_CreateTensorWithDataAsOrtValue,
                                void *(*)(const void *, void *, size_t, const int64_t *, size_t, int, void **))(
                               memory_info, data, bytes, v->dims, rank, dtype, &value));
  if (why) return why;
  if (v->value) CALL(GL_ReleaseValue, void (*)(void *))(v->value);
  v->value = value;
  return NULL;
}

void gl_value_free(const void *const *api, gl_value *v) {
  if (v && v->value) CALL(GL_ReleaseValue, void (*)(void *))(v->value);
  free(v);
}

char *gl_session_count(const void *const *api, void *session, int output, size_t *count) {
  int slot = output ? GL_SessionGetOutputCount : GL_SessionGetInputCount;
  return message(api, CALL(slot, void *(*)(const void *, size_t *))(session, count));
}

static char *port_name(const void *const *api, void *session, int output, size_t index, char **name) {
  void *allocator = NULL;
  char *text = NULL;
  char *why = message(api, CALL(GL_GetAllocatorWithDefaultOptions, void *(*)(void **))(&allocator));
  if (why) return why;
  int slot = output ? GL_SessionGetOutputName : GL_SessionGetInputName;
  why = message(api, CALL(slot, void *(*)(const void *, size_t, void *, char **))(session, index, allocator, &text));
  if (why) return why;
  *name = strdup(text);
  return message(api, CALL(GL_AllocatorFree, void *(*)(void *, void *))(allocator, text));
}

// The tensor type inside info; it lives as long as info does.
static char *port_tensor(const void *const *api, const void *info, gl_port *port) {
  const void *tensor = NULL;
  size_t rank = 0;
  const char *symbols[GL_MAX_RANK] = {0};
  char *why = message(api, CALL(GL_CastTypeInfoToTensorInfo, void *(*)(const void *, const void **))(info, &tensor));
  if (why || !tensor) return why;
  why = message(api, CALL(GL_GetTensorElementType, void *(*)(const void *, int *))(tensor, &port->dtype));
  if (why) return why;
  why = message(api, CALL(GL_GetDimensionsCount, void *(*)(const void *, size_t *))(tensor, &rank));
  if (why) return why;
  port->rank = (int64_t)rank;
  if (rank == 0 || rank > GL_MAX_RANK) return NULL;
  why = message(api, CALL(GL_GetDimensions, void *(*)(const void *, int64_t *, size_t))(tensor, port->dims, rank));
  if (why) return why;
  why = message(api,
                CALL(GL_GetSymbolicDimensions, void *(*)(const void *, const char **, size_t))(tensor, symbols, rank));
  if (why) return why;
  for (size_t i = 0; i < rank; i++) port->symbols[i] = strdup(symbols[i] ? symbols[i] : "");
  return NULL;
}

char *gl_session_port(const void *const *api, void *session, int output, size_t index, gl_port *port) {
  memset(port, 0, sizeof *port);
  port->rank = -1;
  char *why = port_name(api, session, output, index, &port->name);
  if (why) return why;
  void *info = NULL;
  int slot = output ? GL_SessionGetOutputTypeInfo : GL_SessionGetInputTypeInfo;
  why = message(api, CALL(slot, void *(*)(const void *, size_t, void **))(session, index, &info));
  if (why) return why;
  why = port_tensor(api, info, port);
  CALL(GL_ReleaseTypeInfo, void (*)(void *))(info);
  return why;
}

void gl_port_free(gl_port *port) {
  free(port->name);
  for (int i = 0; i < GL_MAX_RANK; i++) free(port->symbols[i]);
  memset(port, 0, sizeof *port);
}

char *gl_session_run(const void *const *api, void *session, void *run_options, char **input_names, void **inputs,
                     size_t input_count, char **output_names, void **outputs, size_t output_count) {
  typedef void *(*run)(void *, const void *, char **, void **, size_t, char **, size_t, void **);
  return message(api, CALL(GL_Run, run)(session, run_options, input_names, inputs, input_count, output_names,
                                        output_count, outputs));
}

char *gl_cancel_load(const void *const *api, void *session_options) {
  return message(api,
                 CALL(GL_SessionOptionsSetLoadCancellationFlag, void *(*)(void *, bool))(session_options, true));
}

// The CUDA provider installs signal handlers without SA_ONSTACK. Go aborts when
// a signal arrives on a goroutine's stack through such a handler, so whatever
// changed while a session was made is put back.
#define SIGNALS 64

void *gl_signals_save(void) {
  struct sigaction *saved = calloc(SIGNALS + 1, sizeof *saved);
  if (!saved) return NULL;
  for (int s = 1; s <= SIGNALS; s++) sigaction(s, NULL, &saved[s]);
  return saved;
}

uint64_t gl_signals_restore(void *memory) {
  struct sigaction *saved = memory;
  uint64_t changed = 0;
  if (!saved) return 0;
  for (int s = 1; s <= SIGNALS; s++) {
    struct sigaction now;
    if (sigaction(s, NULL, &now) != 0) continue;
    if (now.sa_sigaction == saved[s].sa_sigaction && now.sa_flags == saved[s].sa_flags) continue;
    if (sigaction(s, &saved[s], NULL) == 0) changed |= (uint64_t)1 << (s - 1);
  }
  free(saved);
  return changed;
}
