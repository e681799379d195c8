// See ort.h.
#include "ort.h"

#include <stdarg.h>
#include <stdio.h>

enum { GK_STATUS_FAIL = 1 };

void *gk_fail(gk_api api, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return GK_CALL(GK_CreateStatus, void *(*)(int, const char *))(GK_STATUS_FAIL, text);
}

static void *tensor_shape(gk_api api, const void *value, gk_tensor *out) {
  void *info = NULL;
  void *bad = GK_CALL(GK_GetTensorTypeAndShape, void *(*)(const void *, void **))(value, &info);
  if (bad) return bad;
  bad = GK_CALL(GK_GetDimensionsCount, void *(*)(const void *, size_t *))(info, &out->rank);
  if (!bad && out->rank > GK_MAX_RANK) bad = gk_fail(api, "a tensor of %zu dimensions", out->rank);
  if (!bad) bad = GK_CALL(GK_GetDimensions, void *(*)(const void *, int64_t *, size_t))(info, out->dims, out->rank);
  GK_CALL(GK_ReleaseTensorTypeAndShapeInfo, void (*)(void *))(info);
  return bad;
}

void *gk_input(gk_api api, void *context, size_t index, gk_tensor *out) {
  out->data = NULL;
  out->rank = 0;
  size_t count = 0;
  void *bad = GK_CALL(GK_KernelContext_GetInputCount, void *(*)(const void *, size_t *))(context, &count);
  if (bad || index >= count) return bad;
  const void *value = NULL;
  bad = GK_CALL(GK_KernelContext_GetInput, void *(*)(const void *, size_t, const void **))(context, index, &value);
  if (bad || !value) return bad;
  bad = tensor_shape(api, value, out);
  if (bad) return bad;
  return GK_CALL(GK_GetTensorMutableData, void *(*)(const void *, void **))(value, &out->data);
}

void *gk_constant(gk_api api, const void *info, size_t index, gk_tensor *out) {
  out->data = NULL;
  out->rank = 0;
  int constant = 0;
  const void *value = NULL;
  typedef void *(*get)(const void *, size_t, int *, const void **);
  void *bad = GK_CALL(GK_KernelInfoGetConstantInput_tensor, get)(info, index, &constant, &value);
  if (bad || !constant || !value) return bad;
  bad = tensor_shape(api, value, out);
  if (bad) return bad;
  return GK_CALL(GK_GetTensorMutableData, void *(*)(const void *, void **))(value, &out->data);
}

void *gk_output(gk_api api, void *context, size_t index, const int64_t *dims, size_t rank, void **data) {
  void *value = NULL;
  *data = NULL;
  void *bad = GK_CALL(GK_KernelContext_GetOutput, void *(*)(void *, size_t, const int64_t *, size_t, void **))(
      context, index, dims, rank, &value);
  if (bad || !value) return bad;
  return GK_CALL(GK_GetTensorMutableData, void *(*)(const void *, void **))(value, data);
}

void *gk_parallel(gk_api api, void *context, void (*run)(void *, size_t), size_t count, void *state) {
  if (count == 1) {
    run(state, 0);
    return NULL;
  }
  typedef void *(*parallel)(const void *, void (*)(void *, size_t), size_t, size_t, void *);
  return GK_CALL(GK_KernelContext_ParallelFor, parallel)(context, run, count, 0, state);
}

int gk_has_input(gk_api api, const void *info, size_t index) {
  size_t size = 0;
  typedef void *(*input_name)(const void *, size_t, char *, size_t *);
  void *bad = GK_CALL(GK_KernelInfo_GetInputName, input_name)(info, index, NULL, &size);
  if (bad) {
    GK_CALL(GK_ReleaseStatus, void (*)(void *))(bad);
    return 0;
  }
  return size > 1; // with its zero byte
}

int64_t gk_attribute(gk_api api, const void *info, const char *name, int64_t otherwise) {
  int64_t value = otherwise;
  void *bad = GK_CALL(GK_KernelInfoGetAttribute_int64, void *(*)(const void *, const char *, int64_t *))(info, name, &value);
  if (!bad) return value;
  GK_CALL(GK_ReleaseStatus, void (*)(void *))(bad);
  return otherwise;
}

float gk_attribute_float(gk_api api, const void *info, const char *name, float otherwise) {
  float value = otherwise;
  void *bad = GK_CALL(GK_KernelInfoGetAttribute_float, void *(*)(const void *, const char *, float *))(info, name, &value);
  if (!bad) return value;
  GK_CALL(GK_ReleaseStatus, void (*)(void *))(bad);
  return otherwise;
}
