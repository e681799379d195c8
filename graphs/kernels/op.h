// What the operators' definitions share.
#ifndef GLIMPSE_KERNELS_OP_H
#define GLIMPSE_KERNELS_OP_H

#include "ops.h"
#include "ort.h"
#include "packer.h"

// How the message begins of a node that only ONNX Runtime's own kernel can compute: the session is then made without ours.
#define GK_NOT_OURS "glimpse kernels: not for "

int gk_op_processor(const gk_op *op);
// Where an operator's layers can have their weights packed; null for nowhere.
gk_packer *gk_op_packer(const gk_op *op);
// Graphs with quantized layers: their kernels say so when they are made, and attention then is less exact too.
void gk_op_set_quantized(const gk_op *op);
const int *gk_op_quantized(const gk_op *op); // lives as long as the session
int64_t gk_elements(const gk_tensor *t);

#endif
