// What the operators' definitions share.
#ifndef GLIMPSE_KERNELS_OP_H
#define GLIMPSE_KERNELS_OP_H

#include "ops.h"
#include "ort.h"
#include "packer.h"

// How the message begins of a node that only ONNX Runtime's own kernel can compute: the session is then made without ours.
#define GK_NOT_OURS "glimpse kernels: not for "

// An operator: all outputs are float32, of which those behind the first are there or not as the node wants.
typedef struct {
  const char *name;
  const int *inputs; // their types
  size_t input_count;
  uint64_t optional; // a bit an input
  size_t output_count;
  void *(*create)(const gk_op *, const void *api, const void *info, void **kernel);
  void *(*compute)(void *kernel, void *context);
  void (*destroy)(void *kernel);
} gk_kind;

#if defined(__x86_64__)
extern const gk_kind gk_nbits_kind, gk_attention_kind, gk_open_attention_kind, gk_rows_kind, gk_rows_bias_kind;
#endif

// Sizes in attributes come with the model. Up to this no product of two of them and a block overflows.
enum { GK_LARGEST = 1 << 28 };

int gk_op_processor(const gk_op *op);
// Where an operator's layers can have their weights packed; null for nowhere.
gk_packer *gk_op_packer(const gk_op *op);
// Graphs with quantized layers: their kernels say so when they are made, and attention then is less exact too.
void gk_op_set_quantized(const gk_op *op);
const int *gk_op_quantized(const gk_op *op); // lives as long as the session
int64_t gk_elements(const gk_tensor *t);

#endif
