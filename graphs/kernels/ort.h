// What of ONNX Runtime's C interface custom operators need, by the same reading as graphs/native.h: one table of functions
// that only grows at its end. kernels_test.go compares the places and the struct with the binding's header.
#ifndef GLIMPSE_KERNELS_ORT_H
#define GLIMPSE_KERNELS_ORT_H

#include <stddef.h>
#include <stdint.h>

enum gk_slot {
  GK_CreateStatus = 0,
  GK_CreateCustomOpDomain = 26,
  GK_CustomOpDomain_Add = 27,
  GK_AddCustomOpDomain = 28,
  GK_GetTensorMutableData = 51,
  GK_GetDimensionsCount = 61,
  GK_GetDimensions = 62,
  GK_GetTensorTypeAndShape = 65,
  GK_KernelInfoGetAttribute_float = 85,
  GK_KernelInfoGetAttribute_int64 = 86,
  GK_KernelContext_GetInputCount = 88,
  GK_KernelContext_GetOutputCount = 89,
  GK_KernelContext_GetInput = 90,
  GK_KernelContext_GetOutput = 91,
  GK_ReleaseStatus = 93,
  GK_ReleaseTensorTypeAndShapeInfo = 99,
  GK_ReleaseCustomOpDomain = 101,
  GK_KernelInfo_GetInputName = 232,
  GK_KernelInfoGetConstantInput_tensor = 249,
  GK_KernelContext_ParallelFor = 274,
};

// The element types in use, with ONNX's numbers.
enum { GK_FLOAT = 1, GK_UINT8 = 2, GK_INT8 = 3, GK_INT32 = 6, GK_INT64 = 7 };

// OrtCustomOpInputOutputCharacteristic.
enum { GK_REQUIRED = 0, GK_OPTIONAL = 1 };

#define GK_MAX_RANK 8

// OrtCustomOp as of the C API version that gk_custom_op_version names; ONNX Runtime reads no field that is younger.
typedef struct gk_op gk_op;
struct gk_op {
  uint32_t version;
  void *(*create_kernel)(const gk_op *, const void *api, const void *info);
  const char *(*get_name)(const gk_op *);
  const char *(*get_provider)(const gk_op *);
  int (*get_input_type)(const gk_op *, size_t);
  size_t (*get_input_count)(const gk_op *);
  int (*get_output_type)(const gk_op *, size_t);
  size_t (*get_output_count)(const gk_op *);
  void (*compute)(void *kernel, void *context);
  void (*destroy)(void *kernel);
  int (*get_input_characteristic)(const gk_op *, size_t);
  int (*get_output_characteristic)(const gk_op *, size_t);
  int (*get_input_memory_type)(const gk_op *, size_t);
  int (*get_variadic_input_min)(const gk_op *);
  int (*get_variadic_input_homogeneous)(const gk_op *);
  int (*get_variadic_output_min)(const gk_op *);
  int (*get_variadic_output_homogeneous)(const gk_op *);
  void *(*create_kernel_v2)(const gk_op *, const void *api, const void *info, void **kernel);
  void *(*compute_v2)(void *kernel, void *context);
  void *(*infer_shape)(const gk_op *, void *);
  int (*get_start_version)(const gk_op *);
  int (*get_end_version)(const gk_op *);
  size_t (*get_may_inplace)(int **, int **);
  void (*release_may_inplace)(int *, int *);
  size_t (*get_alias_map)(int **, int **);
  void (*release_alias_map)(int *, int *);
};

typedef const void *const *gk_api;

#define GK_CALL(slot, type) ((type)api[slot])

// A tensor that a kernel was given: null data where an optional input is absent.
typedef struct {
  void *data;
  size_t rank;
  int64_t dims[GK_MAX_RANK];
} gk_tensor;

// Each returns null or a status that the caller hands to ONNX Runtime.
void *gk_fail(gk_api api, const char *format, ...) __attribute__((format(printf, 2, 3)));
void *gk_input(gk_api api, void *context, size_t index, gk_tensor *out);
// An input that is a constant of the graph; null data where it is none.
void *gk_constant(gk_api api, const void *info, size_t index, gk_tensor *out);
void *gk_output(gk_api api, void *context, size_t index, const int64_t *dims, size_t rank, void **data);
// Calls run(state, i) for i in 0..count−1 on the session's threads, and returns when all are done.
void *gk_parallel(gk_api api, void *context, void (*run)(void *, size_t), size_t count, void *state);
// Whether a node that a kernel is made for has an optional input.
int gk_has_input(gk_api api, const void *info, size_t index);
int64_t gk_attribute(gk_api api, const void *info, const char *name, int64_t otherwise);
float gk_attribute_float(gk_api api, const void *info, const char *name, float otherwise);

#endif
